"""The tokenizer of a model: tokenizer.json, or the vocab.txt of the oldest checkpoints."""
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from data.errors import UserError, short_message
from data.files import read_json, read_text
from data.hub import fetch

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SAME_MODEL = "Try the tokenizer and the weights of one model"


def load_tokenizer(model, vocab_size=None):
    """Load the tokenizer of a model, without padding and truncation. Raises UserError.

    vocab_size: the number of embeddings, of which there must be one for each word.
    """
    path = fetch(model, "tokenizer.json", optional=True)
    read = read_tokenizer_json
    if path is None:
        path = fetch(model, "vocab.txt")
        read = read_vocab_txt
    try:
        tokenizer = read(model, path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        probe = tokenizer.encode("a probe", "of both segments")
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise UserError(f"{path} is not a tokenizer ({short_message(error)}). Try to download or "
                        "save it again") from error
    check_special_tokens(path, tokenizer.get_vocab())
    ends = [tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")]
    if [probe.ids[0], probe.ids[-1]] != ends or probe.ids.count(ends[1]) != 2:
        raise UserError(f"{path} must make [CLS] first text [SEP] second text [SEP], got "
                        f"{' '.join(probe.tokens)[:80]}. Try a tokenizer with BERT's "
                        "post-processor")
    words = max(tokenizer.get_vocab().values()) + 1
    if vocab_size and words > vocab_size:
        raise UserError(f"{path} must have at most {vocab_size} words, one for each embedding, got "
                        f"{words}. {SAME_MODEL}")
    return tokenizer


def check_special_tokens(path, vocab):
    """Raise UserError for a vocabulary, {word: id}, without one of BERT's special tokens."""
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise UserError(f"{path} must have the tokens of BERT, got none for {' '.join(missing)}. "
                        "Try the tokenizer of a BERT")


def read_tokenizer_json(model, path):
    tokenizer = Tokenizer.from_file(str(path))
    config_path = fetch(model, "tokenizer_config.json", optional=True)
    wanted = read_json(config_path).get("do_lower_case") if config_path else None
    lowercases = bool(tokenizer.normalizer) and tokenizer.normalizer.normalize_str("A") == "a"
    if wanted in (True, False) and wanted != lowercases:
        print(f"tokenizer  {path.name} {'lowercases' if lowercases else 'does not lowercase'}, "
              f"although tokenizer_config.json says do_lower_case: {wanted}")
    return tokenizer


def read_vocab_txt(model, path):
    """Build BERT's tokenizer from vocab.txt, tokenizer_config.json and added_tokens.json."""
    # splitlines() would also split at the words U+2028 and U+0085
    words = [line.removesuffix("\r") for line in read_text(path).rstrip("\r\n").split("\n")]
    vocab = {word: i for i, word in enumerate(words)}
    check_special_tokens(path, vocab)   # the library fails without them
    config_path = fetch(model, "tokenizer_config.json", optional=True)
    settings = read_json(config_path) if config_path else {}
    kind = settings.get("tokenizer_class") or "BertTokenizer"
    if kind not in ("BertTokenizer", "BertTokenizerFast"):
        raise UserError(f"{config_path}: tokenizer_class must be BertTokenizer, got {kind}. Try a "
                        "model with a tokenizer.json")
    lowercase = settings.get("do_lower_case")
    if lowercase not in (None, True, False):
        raise UserError(f"{config_path}: do_lower_case must be true or false, got {lowercase!r}. "
                        "Try to correct it")
    if lowercase is None:
        # a tokenizer that lowercases could never use a word with capitals
        lowercase = all(word == word.lower() for word in words if not word.startswith("["))
        how = "lowercased, as its" if lowercase else "not lowercased, since some"
        print(f"tokenizer  {path.name} without do_lower_case: text is {how} words have "
              f"{'no ' if lowercase else ''}capitals")
    tokenizer = BertWordPieceTokenizer(
        vocab, lowercase=lowercase, strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    added_path = fetch(model, "added_tokens.json", optional=True)
    added = read_json(added_path) if added_path else {}
    if not all(isinstance(number, int) for number in added.values()):
        raise UserError(f"{added_path}: every id must be a whole number, got {str(added)[:60]}. "
                        f"{SAME_MODEL}")
    for token in sorted(added, key=added.get):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token) != added[token]:
            raise UserError(f"{added_path}: {token!r} must have the id "
                            f"{tokenizer.token_to_id(token)}, the next after {path.name}, got "
                            f"{added[token]}. {SAME_MODEL}")
    return tokenizer._tokenizer


def check_same_tokenizer(tokenizer, other, model, other_model):
    """Raise UserError unless two tokenizers give the same ids: one network reads what the other
    one's tokenizer wrote.
    """
    probe = "Does it lowercase, Zoë? 道"
    if (tokenizer.get_vocab() != other.get_vocab()
            or tokenizer.encode(probe).ids != other.encode(probe).ids):
        raise UserError(f"--teacher must have the tokenizer of {model}, got another one in "
                        f"{other_model}. Try a teacher that was trained from --model")
