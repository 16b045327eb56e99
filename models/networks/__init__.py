"""DifNet and its baseline: the parts of Fig. 1, and networks by name."""
