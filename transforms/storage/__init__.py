"""What lies on disk or in an object store: files, feature stores, runs, the work list, tables."""
