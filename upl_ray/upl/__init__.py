"""The method in plain PyTorch and NumPy, without Ray: start here to read it.

In reading order:

    images          bytes -> uint8 crops and random views, or a reason for rejection
    rejection       every reason for which an image is rejected
    clip_spec       a backbone's identity
    backbones       a backbone's weights and configuration: found, hashed and checked, not yet loaded
    clip_model      a loaded backbone: crops and texts -> normalised features
    zero_shot       features -> class probabilities, of one prompt a class or of an ensemble
    fusion          probabilities of several labelers -> one pseudo-label and confidence an image
    known           shares of probability on the classes while other words compete: threshold, distribution
    top_k           pseudo-labels -> the top-K images of each class
    refine          fused probabilities, corrected by the images' own features in a mixture model
    sampling        the images that a mixture is fitted on, and those that prompts are learned on from soft labels
    prompt_encoder  context vectors -> class features, through any frozen text tower
    packed_text     the same for all classes in one packed sequence: the fast pass of causal towers
    prompt_learner  the training recipe: context vectors of many members, learned as one batch
    ensemble        the learned members as one file, and their probabilities
    classifier      an ensemble with its image encoder, for PIL images
    verdict         better or worse than the template, judged without labels by backbones that labeled nothing
    agreement       accuracies of three or more labelers, estimated from how often they agree
    tensors         tensors in safetensors files that show when they are damaged
    tally           sums over pseudo-labels and predictions, which add up over shards
    metrics         accuracy, intervals and calibration, where true labels exist
"""
