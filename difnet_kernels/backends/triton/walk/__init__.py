"""The walks (W1-W5, B1-B7): preparation, the two kernels, their schedule and their launch rows."""
