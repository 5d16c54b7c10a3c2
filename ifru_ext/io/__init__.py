"""Files: tables of interactions, models on disk, and models that other libraries trained."""
