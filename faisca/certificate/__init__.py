"""The gradient certificate: a stage's own steps on the device, compared with the CPU before any training."""
