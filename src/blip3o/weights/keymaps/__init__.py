"""Names of published weights: one file a family, each a total and invertible map to ours."""
