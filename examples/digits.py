"""Scikit-learn's handwritten digits, for the examples that share them."""

import jax.numpy as jnp
import numpy as np
import optax

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise SystemExit(f'This example needs {error.name}: pip install -e ".[examples]"') from error


def load():
    """Return (images, labels) to train with and (images, labels) to test with."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8, 1) / 16).astype(np.float32)  # pixels are 0 to 16
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    return (train_images, train_labels), (test_images, test_labels)


def batches(images, labels, *, epochs=10, batch_size=64):
    """Whole batches only: a smaller last one would be compiled a second time."""
    shuffler = np.random.default_rng(0)
    for _ in range(epochs):
        order = shuffler.permutation(len(images))
        for start in range(0, len(images) - batch_size + 1, batch_size):
            batch = order[start : start + batch_size]
            yield images[batch], labels[batch]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits, labels):
    """In percent."""
    return 100 * float(jnp.mean(jnp.argmax(logits, axis=-1) == labels))
