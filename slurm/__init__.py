"""Jobs on a cluster: profiles, submission, requeueing, states. This package knows recipes, and nothing of training."""
