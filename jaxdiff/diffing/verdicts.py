"""One verdict for each latent, from its decoder norms and Latent Scaling with intervals.

Let T_r and T_eps be the paper's thresholds (0.5 and 0.2), low and high the ends of an interval,
rho = |d_other| / |d_own|, and one-sided mean relative_norm in the classes ft_only or base_only
(rho <= 0.2). The first rule that holds decides:

1. undecided: nu is not defined, or fewer than `min_sequences` effective sequences carry the latent.
2. exclusive: high(nu^r) < T_r and high(nu^eps) < T_eps and rho < T_r. The other model shows the
   direction neither in its reconstruction nor in its error, and the latent itself writes less than
   T_r of its norm there, in whatever direction. So a latent of class "other" can be exclusive; one
   with two decoders of like norm that point apart (a rotated concept) cannot.
3. One-sided: shrunk if low(nu^eps) > T_eps, decoupled if low(nu^r) > T_r; where both hold, the one
   that exceeds its threshold by the larger factor.
4. Not one-sided: shared if low(nu^r) >= T_r; shrunk if low(nu^eps), less what the latent's own
   decoder puts back, is above T_eps (the decoder understates the other model by that much).
5. undecided: an interval straddles a threshold, the concept is in the other model at a gain
   between the thresholds, or the two decoders point apart.
"""

import numpy as np
from jaxtyping import Float

from jaxdiff.config import DiffConfig
from jaxdiff.diffing.latent_scaling import LatentScaling

VERDICTS = ("exclusive", "shrunk", "decoupled", "shared", "undecided")


def verdicts(
    relative: Float[np.ndarray, " L"], scaling: LatentScaling, config: DiffConfig
) -> np.ndarray:
    """Applies the rules above.

    Args:
        relative: `relative_norm` of each latent.
        scaling: Latent Scaling of the same latents.
        config: Thresholds.

    Returns:
        A name of `VERDICTS` for each latent.
    """
    t_r, t_e = config.nu_reconstruction, config.nu_error
    nu_r, low_r, high_r = scaling.nu_reconstruction.T
    nu_e, low_e, high_e = scaling.nu_error.T
    specificity = np.maximum(relative, 1 - relative)  # 1 - rho / 2
    rho = 2 * (1 - specificity)
    one_sided = specificity >= 0.9
    # NaN compares false everywhere, so an undefined nu falls through to undecided.
    usable = (scaling.reason == "") & (scaling.sequences >= config.min_sequences)
    shrunk, decoupled = low_e > t_e, low_r > t_r
    exclusive = (high_r < t_r) & (high_e < t_e) & (rho < t_r)
    error_wins = nu_e / t_e >= nu_r / t_r
    return np.select(
        [
            ~usable,
            exclusive,
            one_sided & shrunk & (error_wins | ~decoupled),
            one_sided & decoupled,
            ~one_sided & (low_r >= t_r),
            ~one_sided & (low_e - scaling.put_back > t_e),
        ],
        ["undecided", "exclusive", "shrunk", "decoupled", "shared", "shrunk"],
        default="undecided",
    )


def reasons(
    verdict: np.ndarray,
    relative: Float[np.ndarray, " L"],
    scaling: LatentScaling,
    config: DiffConfig,
) -> np.ndarray:
    """Says in words why a latent is undecided; empty for the others.

    Args:
        verdict: What `verdicts` returned for the rest of the arguments.
        relative: `relative_norm` of each latent.
        scaling: Latent Scaling of the same latents.
        config: Thresholds.

    Returns:
        A text for each latent.
    """
    t_r, t_e = config.nu_reconstruction, config.nu_error
    _, low_r, high_r = scaling.nu_reconstruction.T
    _, low_e, high_e = scaling.nu_error.T
    straddles = ((low_r < t_r) & (high_r >= t_r)) | ((low_e <= t_e) & (high_e >= t_e))
    between = (low_e > t_e) & (high_r < t_r)
    return np.select(
        [
            verdict != "undecided",
            scaling.reason != "",
            scaling.sequences < config.min_sequences,
            straddles,
            between,
        ],
        [
            "",
            scaling.reason,
            f"fewer than {config.min_sequences:g} effective sequences carry it",
            "an interval straddles a threshold",
            "the other model has it at a lower gain",
        ],
        default="its two decoders point apart",
    )
