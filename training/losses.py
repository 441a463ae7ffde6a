"""What is asked of the global descriptors."""

import torch

TEMPERATURE = 0.07
_NEVER = -1e4


def supervised_contrastive(
    descriptors: torch.Tensor, classes: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """The supervised contrastive loss (Khosla et al. 2020, L_out): near to all of the class, far from others.

    Args:
      descriptors: float32 [N, D], unit length.
      classes, places: int [N]; pairs of one place but of different classes are left out.
    """
    logits = descriptors @ descriptors.T / TEMPERATURE
    same = classes[:, None] == classes[None]
    left_out = ((places[:, None] == places[None]) & ~same) | torch.eye(len(classes), dtype=torch.bool)
    logits = logits.masked_fill(left_out, _NEVER)
    log_probability = logits - logits.logsumexp(1, keepdim=True)
    positive = (same & ~left_out).float()
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()
