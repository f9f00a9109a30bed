"""Jobs on a cluster: profiles, submission, requeueing, states. This package imports no training code."""
