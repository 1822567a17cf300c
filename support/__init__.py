"""What two or more pages of *Descent* need: data, models, training, sweeps, records, surfaces, pictures."""
