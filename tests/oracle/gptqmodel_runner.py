"""Load a folder with transformers and gptqmodel on a CPU, and print what the model says.

Runs in an environment of its own (``GPTQMODEL_REQUIREMENTS`` in ``test_gptqmodel_loads.py``) and
imports nothing of forge. Arguments: a folder, a file of token ids (``.npy``, [batch, length]), the
number of tokens to generate, and the ``.npz`` file to write: the logits of the prompt, the greedy
continuation, and the names of all modules' classes.
"""

import sys


def main(folder, tokens, num_new, out):
    """Write the file."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    model.eval()
    inputs = torch.from_numpy(np.load(tokens))
    with torch.no_grad():
        logits = model(inputs).logits.float().numpy()
        length = {"max_new_tokens": int(num_new), "min_new_tokens": int(num_new)}
        texts = model.generate(inputs, do_sample=False, **length)
    names = {type(module).__name__ for module in model.modules()}
    np.savez(out, logits=logits, texts=texts.numpy(), classes=sorted(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
