"""`bitsfusion evaluate`: a model and the original on the same prompts and seeds (section 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import Device, Json, Quiet, Size
from bitsfusion.devices import AUTO, resolve
from bitsfusion.diffusion.process import is_flow
from bitsfusion.diffusion.samplers import OWN, Sampler, sampler_name
from bitsfusion.embedded import embedded_model, guidance_of
from bitsfusion.errors import InputError
from bitsfusion.evaluation.evaluate import Scores, check_source
from bitsfusion.evaluation.evaluate import evaluate as run_evaluation
from bitsfusion.evaluation.measures import (
    PAIRED,
    Measure,
    Metric,
    clip_measure,
    fid_measure,
    pair_measure,
    world_geneval_measure,
)
from bitsfusion.evaluation.official import geneval_measure, tifa_measure
from bitsfusion.evaluation.prompts import PromptSet, file_prompts, picture_prompts, world_prompts
from bitsfusion.evaluation.setting import Evaluation
from bitsfusion.io.pictures import holds_pictures, is_tree
from bitsfusion.io.texts import read_json
from bitsfusion.metrics.clip_score import ClipScorer
from bitsfusion.metrics.geneval.colors import OFFICIAL_CLIP, ClipColors
from bitsfusion.metrics.geneval.detector import Mask2FormerDetector
from bitsfusion.metrics.geneval.evaluator import Evaluator
from bitsfusion.metrics.geneval.files import tree_prompts
from bitsfusion.metrics.geneval.prompts import is_geneval, read_prompts
from bitsfusion.metrics.geneval.world import WorldReader
from bitsfusion.metrics.tifa.files import read_captions, read_questions
from bitsfusion.metrics.tifa.matcher import OFFICIAL_ENCODER, SentenceMatcher
from bitsfusion.metrics.tifa.vqa import vqa_model
from bitsfusion.pipelines.resolve import resolve as resolve_model

CLIP = "openai/clip-vit-base-patch32"
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
WORLD = "world"
VQA = "Salesforce/blip-vqa-capfilt-large"
NAMES = [metric.value for metric in Metric]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def evaluate(
    model: Annotated[
        str, typer.Argument(help='A packed or diffusers folder, a hub id, "embedded", or a folder of pictures.')
    ],
    against: Annotated[
        str | None,
        typer.Option(help="The original model, drawn with the same prompts and seeds, or a folder of its pictures."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help=f"Separated by commas: {', '.join(NAMES)}. By default, those that need no other option."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts: .txt, .jsonl (GenEval), .tsv (PartiPrompts) or .json (TIFA)."),
    ] = None,
    per_task: Annotated[int, typer.Option(min=1, help="Prompts for each task of an embedded model's world.")] = 100,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only this many prompts, from the start of the file.")
    ] = None,
    images_per_prompt: Annotated[
        int, typer.Option(min=1, help="Images for each prompt; published GenEval scores have 4.")
    ] = 1,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Scales separated by commas, or a range in steps of 1: 2.5-9.5 is the paper's.",
            show_default="7.5, or the embedded model's own",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Any scheduler of diffusers by name, or own for the pipeline's.",
            show_default="pndm; own for flow models",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampler steps.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; the others count up from it.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at once.")] = 8,
    size: Size = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the images and scores.json. The same command resumes it.")
    ] = Path("evaluation"),
    clip: Annotated[
        str | None, typer.Option(help="Folder or hub id of the CLIP score's model.", show_default=CLIP)
    ] = None,
    lpips: Annotated[str, typer.Option(help="Network of LPIPS: alex, vgg, squeeze, or a TorchScript file.")] = "alex",
    fid_features: Annotated[
        str, typer.Option(help="Features of FID: inception, clip:MODEL, or a TorchScript file.")
    ] = "inception",
    fid_reference: Annotated[Path | None, typer.Option(help="Folder of real images for FID.")] = None,
    detector: Annotated[
        str,
        typer.Option(
            help='Detector of GenEval: a Mask2Former of transformers, or "world", the exact reader of drawn worlds.'
        ),
    ] = DETECTOR,
    colors: Annotated[str, typer.Option(help="CLIP model that names colours for GenEval.")] = OFFICIAL_CLIP,
    questions: Annotated[
        Path | None, typer.Option(help="File of TIFA's questions about the captions of --prompts.")
    ] = None,
    vqa: Annotated[str, typer.Option(help="BLIP or ViLT model that answers TIFA's questions.")] = VQA,
    sentence_encoder: Annotated[
        str, typer.Option(help="Text encoder that matches TIFA's answers to choices.")
    ] = OFFICIAL_ENCODER,
    device: Device = AUTO,
    dtype: Annotated[str, typer.Option(help=f"Dtype of the pipelines: {', '.join(DTYPES)}.")] = "float32",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Scores a model, and compares it with the original. If killed, run the same command again."""
    device = str(resolve(device))
    for side in filter(None, (model, against)):
        check_source(side)
    pictures = next((Path(side) for side in (model, against) if side and holds_pictures(side)), None)
    known = embedded_model(model, against)
    world = known.world if known and prompts is None and pictures is None else None
    asked = _metrics(metrics, against, world is not None)
    if prompts is not None:
        repeated = _first(file_prompts(prompts, seed), limit).repeated(images_per_prompt)
    elif pictures is not None:
        every, images_per_prompt = picture_prompts(pictures, seed, images_per_prompt)
        repeated = _first(every, limit and limit * images_per_prompt)
    elif world:
        repeated = world_prompts(world, "test", per_task, seed).repeated(images_per_prompt)
    else:
        raise InputError("prompts: got none, wanted --prompts FILE, or a folder of pictures with its metadata.jsonl")
    if dtype not in DTYPES:
        raise InputError(f"dtype: got {dtype}, wanted {', '.join(DTYPES)}")
    evaluation = Evaluation(
        model=model,
        against=against,
        prompts=repeated,
        prompts_source="the drawn world's test prompts" if world else str(prompts or pictures),
        images_per_prompt=images_per_prompt,
        sampler=_usual_sampler(model, against) if sampler is None else sampler_name(sampler),
        steps=steps,
        guidance=(guidance_of(model, against),) if guidance is None else _guidance(guidance),
        batch_size=batch_size,
        size=size,
        device=device,
        dtype=DTYPES[dtype],
    )
    measures: list[Measure] = []
    for metric in asked:
        if metric is Metric.CLIP:
            own = known if clip is None else None
            source = str(own.scorer) if own else clip or CLIP
            scorer = ClipScorer.from_pretrained(source, device)
            measures.append(clip_measure(scorer, repeated, f"{own.title}'s scorer" if own else source))
        elif metric in PAIRED:
            measures.append(pair_measure(metric, lpips, device))
        elif metric is Metric.FID:
            if fid_reference is None:
                raise InputError("fid: got no --fid-reference, wanted a folder of real images")
            measures.append(fid_measure(fid_features, fid_reference, device))
        elif metric is Metric.GENEVAL:
            if world:
                measures.append(world_geneval_measure(repeated))
            else:
                measures.append(_geneval(prompts, pictures, limit, images_per_prompt, detector, colors, device))
        else:
            measures.append(_tifa(prompts, limit, images_per_prompt, questions, vqa, sentence_encoder, device))
    with progress_bars(quiet or json) as progress, resumable():
        scores = run_evaluation(evaluation, measures, out, progress)
    if json:
        print_json(scores)
    else:
        _print(scores, out)


def _metrics(text: str | None, against: str | None, world: bool) -> list[Metric]:
    if text is None:
        paired = [Metric.MSE, Metric.PSNR, Metric.SSIM] if against else []
        return [Metric.CLIP, *paired, *([Metric.GENEVAL] if world else [])]
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if unknown := [name for name in names if name not in NAMES] or ([] if names else ["none"]):
        raise InputError(f"metrics: got {unknown[0]}, wanted {', '.join(NAMES)}")
    asked = [Metric(name) for name in names]
    if against is None and (paired := [metric for metric in asked if metric in PAIRED]):
        raise InputError(f"metrics: got {paired[0].value} without --against, wanted the original to compare with")
    return asked


def _guidance(text: str) -> tuple[float, ...]:
    values: list[float] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            start, end = float(first), float(last) if dash else float(first)
            if not 0 <= start <= end <= 1000:
                raise ValueError
            values += [start + step for step in range(int(end - start) + 1)]
    except ValueError:
        raise InputError(f"guidance: got {text!r}, wanted numbers such as 3.5,7.5 or 2.5-9.5 in steps of 1") from None
    return tuple(dict.fromkeys(values))


def _first(prompts: PromptSet, limit: int | None) -> PromptSet:
    return PromptSet(prompts.texts[:limit], prompts.seeds[:limit])


def _geneval(
    path: Path | None, pictures: Path | None, limit: int | None, each: int, detector: str, colors: str, device: str
) -> Measure:
    if path is None and pictures is not None and is_tree(pictures):
        asked = tree_prompts(pictures)[:limit]
    elif path is not None and is_geneval(path):
        asked = read_prompts(path)[:limit]
    else:
        raise InputError(
            f"geneval: got prompts {path or pictures}, wanted GenEval's own: .jsonl lines with tag, include and prompt"
        )
    if detector == WORLD:
        return geneval_measure(Evaluator(WorldReader(), WorldReader()), asked, each)
    seen = Mask2FormerDetector.from_pretrained(detector, device)
    return geneval_measure(Evaluator(seen, ClipColors.from_pretrained(colors, device)), asked, each)


def _tifa(
    path: Path | None, limit: int | None, each: int, questions: Path | None, vqa: str, encoder: str, device: str
) -> Measure:
    if path is None or path.suffix != ".json" or questions is None:
        raise InputError("tifa: wanted TIFA's captions (--prompts FILE.json) and its questions (--questions FILE.json)")
    if each != 1:
        raise InputError(f"tifa: got {each} images a prompt, wanted one a caption")
    captions, asked = read_captions(path)[:limit], read_questions(questions)
    matcher = SentenceMatcher.from_pretrained(encoder, device)
    return tifa_measure(vqa_model(vqa, device), matcher, captions, asked)


def _print(scores: Scores, out: Path) -> None:
    rows = []
    for result in scores["results"]:
        change, shown = result.get("to_original"), ""
        if "difference" in result:
            change, shown = result["difference"], result["difference"]["verdict"]
        means = [_mean(result.get(side)) for side in ("model", "against")]
        guidance = "" if result["guidance"] is None else f"{result['guidance']:g}"
        rows.append([result["metric"], guidance, *means, _interval(change), shown])
    print_table(["metric", "guidance", "model", "original", "between them (95 %)", ""], rows)
    print(f"{scores['settings']['images']} images a set; every interval, over prompts: {out / 'scores.json'}")


def _mean(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{value.get('mean', value.get('value')):.4g}"


def _interval(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{value['mean']:.3g} ({value['low']:.3g} to {value['high']:.3g})"


def _usual_sampler(*models: str | None) -> str:
    """The paper's PNDM; the own scheduler of a model of flow matching."""
    for model in models:
        if model is not None and not holds_pictures(Path(model)):
            scheduler = resolve_model(model).component("scheduler")
            if scheduler is not None:
                flow = is_flow(read_json(scheduler.folder / "scheduler_config.json"))
                return OWN if flow else Sampler.PNDM.value
    return Sampler.PNDM.value
