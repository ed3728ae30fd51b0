"""Files, downloads, memory and text: helpers that know nothing of super-resolution."""
