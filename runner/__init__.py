"""What a run means: config, schedules, weights, order of the data, files. No framework is imported here."""
