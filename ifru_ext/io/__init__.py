"""Files: tables of interactions, and models on disk."""
