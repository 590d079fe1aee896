"""Reports from what lies on disk: a comparison or a run as one HTML file, its figures, its sample rollouts."""
