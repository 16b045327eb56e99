"""What a prediction is worth: metrics, the dense CRF, and a network read out before its end."""
