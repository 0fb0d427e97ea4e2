"""Where joules come from: the session over open sensors, and one file per sensor."""
