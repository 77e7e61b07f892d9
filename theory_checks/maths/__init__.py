"""The mathematics of the theory in exact coordinates: tangent learners, trials, certificates, predictors."""
