"""Bugs of ports: what others' converters get wrong, silently, as shapes tell of none of it."""

from bugs.mutation import Mutation

LLAMA, ROPE, LAYOUT = (
    "faisca/porting/layouts/llama.py",
    "faisca/porting/layouts/rope.py",
    "faisca/porting/layouts/layout.py",
)
FOLDERS, TENSORS = "faisca/porting/huggingface.py", "faisca/system/tensors.py"
TESTS = "tests/test_porting_families.py::"
IN_AND_OUT = f"{TESTS}test_a_family_comes_in_and_goes_out_again"
REFUSED = f"{TESTS}test_what_we_do_not_compute_is_refused_by_name"
TOKENIZER, ENCODING, KINDS = (
    "faisca/data/tokenizer.py",
    "faisca/data/json_encoding.py",
    "tests/test_tokenizer_kinds.py::",
)
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "the space before a completion lost",
        TOKENIZER,
        "shown[0] in known and silent.issuperset(after)",
        "shown[0] in known",
        f"{KINDS}test_a_headline_has_the_space_that_the_model_wrote[llama 2]",
    ),
    Mutation(
        "a space before the first word",
        TOKENIZER,
        "parts[0] = self.encoding.first_bytes(shown[0])",
        "pass",
        f"{KINDS}test_ids_and_text_are_those_of_transformers[mistral]",
    ),
    Mutation(
        "a prompt without what the model's own tokenizer begins with",
        TOKENIZER,
        "return self._bos or (self.end_of_text,)",
        "return (self.end_of_text,)",
        f"{KINDS}test_a_text_begins_as_the_models_own_tokenizer_begins_it[llama 2]",
    ),
    Mutation(
        "a title without what the model's own tokenizer begins with",
        TOKENIZER,
        "((*self._bos, *self.encode(title), self.end_of_text)",
        "((*self.encode(title), self.end_of_text)",
        f"{KINDS}test_titles_are_as_many_bytes_as_they_are[llama 2]",
    ),
    Mutation(
        "bytes of a character as text of their own",
        ENCODING,
        "return bytes.fromhex(byte[1])",
        'return bytes.fromhex(byte[1]).decode("utf-8", "replace").encode()',
        f"{KINDS}test_a_character_of_several_tokens_is_whole_where_they_are[mistral]",
    ),
    Mutation(
        "a class that builds the tokenizer anew",
        "faisca/porting/folders.py",
        "or tokenizer.encoding.byte_level:",
        "or tokenizer.encoding:",
        "tests/test_porting_tokenizers.py::test_it_comes_in_and_goes_out_with_the_same_ids_and_texts[llama 2]",
    ),
    Mutation(
        "rotation's base written in one place only",
        ROPE,
        'values = {"rope_theta": model.rope_base, "rope_parameters": parameters}',
        'values = {"rope_parameters": parameters}',
        f"{TESTS}test_the_base_of_the_rotation_stands_in_both_places[qwen2]",
    ),
    Mutation(
        "rotation's scaling not written for mlx-lm",
        ROPE,
        '({"rope_scaling": parameters} if model.rope_factor > 1 else {})',
        "{}",
        f"{TESTS}test_the_base_of_the_rotation_stands_in_both_places[llama 3]",
    ),
    Mutation(
        "rotation's scaling not read",
        ROPE,
        'if kind == "default":',
        'if kind in ("default", "llama3"):',
        f"{IN_AND_OUT}[llama 3]",
    ),
    Mutation("contradicting bases not seen", ROPE, "if value != first:", "if False:", f"{REFUSED}[two bases]"),
    Mutation(
        "part of a head's rotation not seen",
        ROPE,
        'if values.get("partial_rotary_factor") not in (None, 1):',
        'if values.get("rotary_pct") not in (None, 1):',
        f"{REFUSED}[part of a head turned]",
    ),
    Mutation(
        "values before keys", LLAMA, 'for part in "qkv"), rows)', 'for part in "qvk"), rows)', f"{IN_AND_OUT}[llama]"
    ),
    Mutation(
        "gate and up swapped",
        LLAMA,
        '"mlp.gate_proj",\n    "feed_forward.up": "mlp.up_proj"',
        '"mlp.up_proj",\n    "feed_forward.up": "mlp.gate_proj"',
        f"{IN_AND_OUT}[mistral]",
    ),
    Mutation(
        "a sliding window ignored",
        LLAMA,
        "isinstance(context, int) and window < context:",
        "isinstance(context, int) and window < 0:",
        f"{REFUSED}[a window]",
    ),
    Mutation(
        "refused keys ignored", LAYOUT, "if key in config and not any(", "if False and not any(", f"{REFUSED}[slices]"
    ),
    Mutation(
        "a tied head that differs lost",
        FOLDERS,
        "if embedding in theirs and not np.array_equal(theirs[HEAD], theirs[embedding]):",
        "if embedding not in theirs:",
        f"{REFUSED}[a head that differs]",
    ),
    Mutation(
        "bfloat16 cut off, and not rounded",
        TENSORS,
        "((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)",
        "(bits >> 16)",
        f"{TESTS}test_a_narrower_target_is_rounded_to_the_nearest_and_verified_as_such[out-bfloat16]",
    ),
    Mutation(
        "output biases that are not zero ignored",
        LAYOUT,
        "if name in theirs and theirs[name].any():",
        "if name not in theirs and theirs[name].any():",
        "tests/test_porting_refusals.py::test_a_bad_folder_is_refused[biases that are denied]",
    ),
)
