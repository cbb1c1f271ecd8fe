"""What a rank of `test_hpdm_ranks` does, in a file of its own: a spawned process imports all that its file imports."""
import torch
from portrait_diffusion.guidance.hpdm.ranks import average_gradients, leave


def averaged(rank: int, out: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{out}/ranks", rank=rank, world_size=2)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,))]
    for parameter, value in zip(parameters[:2], (1.0, 5.0)):
        parameter.grad = torch.full_like(parameter, value + 2 * rank)
    average_gradients(parameters)
    torch.save([parameter.grad for parameter in parameters], f"{out}/{rank}.pt")
    leave()
    assert not torch.distributed.is_initialized()
    leave()  # nothing is left to close
