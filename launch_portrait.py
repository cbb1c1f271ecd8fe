"""Start the command line from a checkout: python launch_portrait.py --image photo.jpg"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parent / "custom"))

if __name__ == "__main__":
    try:
        from portrait_diffusion.cli import main
    except ModuleNotFoundError as error:
        if (error.name or "portrait_diffusion").startswith("portrait_diffusion"):
            raise
        missing = f"The package '{error.name}' is not installed"
        print(f"error: {missing}; run: pip install -r requirements.txt", file=sys.stderr)
        sys.exit(3)
    sys.exit(main())
