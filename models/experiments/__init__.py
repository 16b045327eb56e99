"""The paper's claims on generated images, and what the parts of a network cost on this machine."""
