"""Where a run happens on a cluster: jobs, profiles, submit, requeue, chain and watch. Knows recipes, nothing of training."""
