"""Google Landmarks v2 and the Kaggle editions: from nothing to a submission."""
