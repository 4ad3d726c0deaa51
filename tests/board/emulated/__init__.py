"""A Debian arm64 machine under qemu with an INA219, for `make board`: image (built once), guest (boots or resumes), waveform."""
