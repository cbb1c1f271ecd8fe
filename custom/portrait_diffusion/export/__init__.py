"""What people open: textured GLB, PLY, turntable, views, report, provenance. Start at ``bundle.export_all``."""
