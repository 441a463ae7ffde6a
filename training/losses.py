"""What is asked of the global descriptors, of the local ones and of the attention."""

from typing import Any

import tensorflow as tf

GLOBAL_TEMPERATURE = 0.07
LOCAL_TEMPERATURE = 0.06
NEAR = 12.0  # px: points as near as that to the right one are neither right nor wrong
FROM_OTHERS = 6  # points of every pair that serve all others as wrong answers
_NEVER = -1e4


def supervised_contrastive(descriptors: Any, classes: Any, places: Any) -> Any:
    """The supervised contrastive loss (Khosla et al. 2020, L_out): near to all of the class, far from all
    others.

    Args:
      descriptors: float32 [N, D], unit length.
      classes, places: int32 [N]; pairs of one place but of different classes are left out.
    """
    logits = tf.matmul(descriptors, descriptors, transpose_b=True) / GLOBAL_TEMPERATURE
    same = classes[:, None] == classes[None]
    left_out = ((places[:, None] == places[None]) & ~same) | tf.eye(tf.shape(classes)[0], dtype=tf.bool)
    logits = tf.where(left_out, _NEVER, logits)
    log_probability = logits - tf.reduce_logsumexp(logits, 1, keepdims=True)
    positive = tf.cast(same & ~left_out, tf.float32)
    return -tf.reduce_mean(tf.reduce_sum(positive * log_probability, 1) / tf.reduce_sum(positive, 1))


def matching(first: Any, second: Any, points: Any, valid: Any, places: Any) -> tuple[Any, Any]:
    """InfoNCE over the points of a pair of views, in both directions, with some points of all other pairs as
    wrong answers.

    Args:
      first, second: float32 [B, P, D], descriptors of corresponding points, unit length.
      points: float32 [B, P, 4], (y, x) in the first view and in the second.
      valid: bool [B, P].
      places: int32 [B].

    Returns:
      The loss, and bool [B, P]: whether a point's right answer was the best in both directions.
    """
    mask = tf.cast(valid, tf.float32)
    count = tf.reduce_sum(mask) + 1e-6
    others = (places[:, None] != places[None])[:, None, :, None] & valid[None, None, :, :FROM_OTHERS]
    total, right = 0.0, valid
    for here, there, at in ((first, second, points[..., 2:]), (second, first, points[..., :2])):
        logits = tf.matmul(here, there, transpose_b=True) / LOCAL_TEMPERATURE
        near = tf.reduce_sum((at[:, :, None] - at[:, None]) ** 2, -1) < NEAR**2
        itself = tf.eye(points.shape[1], dtype=tf.bool)[None]
        logits = tf.where((near & ~itself) | ~valid[:, None], _NEVER, logits)
        pool = tf.reshape(there[:, :FROM_OTHERS], [-1, there.shape[2]])
        wrong = tf.reshape(
            tf.matmul(tf.reshape(here, [-1, here.shape[2]]), pool, transpose_b=True),
            [here.shape[0], here.shape[1], here.shape[0], FROM_OTHERS],
        )
        wrong = tf.where(others, wrong / LOCAL_TEMPERATURE, _NEVER)
        wrong = tf.reshape(wrong, [here.shape[0], here.shape[1], -1])
        answer = tf.linalg.diag_part(logits)
        everything = tf.concat([logits, wrong], 2)
        total += tf.reduce_sum(mask * (tf.reduce_logsumexp(everything, 2) - answer)) / count
        right &= answer >= tf.reduce_max(everything, 2)
    return total / 2, right


def matchability(attention: Any, right: Any, valid: Any) -> Any:
    """Cross entropy: attention (logits [B, P]) tells whether a point is matched rightly."""
    mask = tf.cast(valid, tf.float32)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=tf.cast(right, tf.float32), logits=attention)
    return tf.reduce_sum(mask * loss) / (tf.reduce_sum(mask) + 1e-6)
