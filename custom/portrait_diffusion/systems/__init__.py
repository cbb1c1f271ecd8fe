"""Training systems; slow to import (pytorch-lightning), so that only what trains imports them."""
