"""Candidates of a station: kept on a shelf, compared, approved, promoted, rolled back, shadowed, trained."""
