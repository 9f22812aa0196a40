"""Independent float64 references of forge's arithmetic; nothing here imports forge."""
