"""What a worker process needs around the steps: settings, threads, notes of a crash."""
