"""What every command and layer uses: files, progress, interruption, timing, figures."""
