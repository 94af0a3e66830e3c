"""L6: doctor: reports on this machine and on the memory that a model needs."""
