"""Training of the fusion: settings, cross-validation, ablations, results and plots."""
