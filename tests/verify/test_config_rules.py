"""Options and configuration files: each rule catches its planted bug and passes the look-alikes."""

import contextlib
import textwrap

import pytest

from verify.report import Finding, Status
from verify.rules import config
from verify.trace.record import NotSeenError, Record


def record(files: dict[str, str], siblings: dict[str, str] | None = None) -> Record:
    events = [{"kind": "source", "path": path, "text": textwrap.dedent(text)} for path, text in files.items()]
    events += [{"kind": "sibling", "path": path, "text": text} for path, text in (siblings or {}).items()]
    return Record(events)


def problems(rule, files: dict[str, str] | str, siblings: dict[str, str] | None = None) -> list[Finding]:
    files = {"train.py": files} if isinstance(files, str) else files
    return [f for f in rule(record(files, siblings)) if f.status is not Status.PASS]


def unread(files: dict[str, str] | str, siblings: dict[str, str] | None = None) -> str:
    found = problems(config.option_never_read, files, siblings)
    return "; ".join(f.measured.removeprefix("never read: ") for f in found)


PARSER = """
import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--mixup", action="store_true")
args = parser.parse_args()
"""
LOAD = """
import yaml

with open("config.yaml") as f:
    cfg = yaml.safe_load(f)
"""
YAML = """\
lr: 0.1
weight_decay: 0.0001
scheduler: cosine
T_max: 200
"""


class TestOptionNeverRead:
    def test_unread_option_is_found(self):
        finding = problems(config.option_never_read, PARSER + "print(args.lr)\n")[0]
        assert finding.measured == "never read: --mixup"
        assert finding.location == "train.py:6"

    def test_unread_keys_of_a_file_are_found_with_their_line(self):
        code = LOAD + "opt = Adam(params, lr=cfg['lr'])\nsched = CosineAnnealingLR(opt, T_max=cfg['lr'])\n"
        finding = problems(config.option_never_read, {"train.py": code, "config.yaml": YAML})[0]
        assert finding.measured == "never read: weight_decay, scheduler, T_max"
        assert finding.location == "config.yaml:2"

    def test_a_name_of_the_same_spelling_is_no_read(self):
        code = LOAD + "scheduler = Sched(T_max=cfg['lr'])\nscheduler.step()\nfor weight_decay in (1, 2):\n    pass\n"
        assert unread({"train.py": code, "config.yaml": YAML}) == "weight_decay, scheduler, T_max"

    @pytest.mark.parametrize(
        "showing",
        [
            "print(cfg)",
            "print(f'{cfg}')",
            "torch.save({'config': cfg, 'model': 1}, 'x.pt')",
            "wandb.init(project='x', config=cfg)",
            "json.dump(cfg, open('x', 'w'))",
            "yaml.safe_dump(cfg, open('x', 'w'))",
            "logger.info('config: %s', cfg)",
            "for k, v in cfg.items():\n    print(k, v)",
            "print('\\n'.join(f'{k}: {v}' for k, v in sorted(cfg.items())))",
        ],
    )
    def test_showing_or_saving_everything_is_no_read(self, showing):
        code = (
            "import torch, wandb, json, logging\nlogger = logging.getLogger()\n" + LOAD + "print(cfg['lr'])\n" + showing
        )
        assert unread({"train.py": code, "config.yaml": YAML}) == "weight_decay, scheduler, T_max"

    @pytest.mark.parametrize(
        "use",
        [
            "train(**cfg)",
            "library.train(cfg)",
            "for k in ('lr', 'T_max'):\n    print(cfg[k])",
            "for k, v in cfg.items():\n    setattr(obj, k, v)",
            "globals().update(cfg)",
            "match cfg:\n    case {'lr': x}:\n        pass",
            "x = lambda: cfg",
            "getattr(cfg, name)",
            "objects.append(cfg)",
            "a = cfg['lr'], cfg['weight_decay'], cfg.get('scheduler'), cfg.pop('T_max')",
            "ns = SimpleNamespace(**cfg)\nprint(ns.lr, ns.weight_decay, ns.scheduler, ns.T_max)",
            "merged = {'lr': 1, **cfg}\nprint([merged[k] for k in merged])",
            "defaults = {}\ndefaults.update(cfg)\nlibrary(defaults)",
            "state = {'cfg': cfg}\nother = state['cfg']\nlibrary(other)",
            "eval(\"cfg['T_max']\")",
        ],
    )
    def test_unknown_use_of_the_whole_says_nothing(self, use):
        code = "from types import SimpleNamespace\n" + LOAD + use
        try:
            assert unread({"train.py": code, "config.yaml": YAML}) == ""
        except NotSeenError:
            assert "eval" in use

    def test_keys_below_a_level_that_escapes_are_unknown_and_the_others_are_not(self):
        text = "optimizer:\n  lr: 0.1\n  momentum: 0.9\nmodel:\n  depth: 3\n  width: 4\n"
        code = LOAD + "opt = SGD(p, **cfg['optimizer'])\nnet = Net(cfg['model']['depth'])\n"
        assert unread({"train.py": code, "config.yaml": text}) == "model.width"

    def test_a_section_that_nobody_reads_is_named_once(self):
        text = "lr: 0.1\nscheduler:\n  name: cosine\n  T_max: 3\n"
        assert unread({"train.py": LOAD + "print(cfg['lr'])", "config.yaml": text}) == "scheduler"

    def test_reads_are_followed_across_files_classes_and_returns(self):
        files = {
            "train.py": """
                from options import get_args
                from engine import Trainer

                def main():
                    args = get_args()
                    Trainer(args).run()

                if __name__ == "__main__":
                    main()
            """,
            "options.py": """
                import argparse

                def get_args():
                    p = argparse.ArgumentParser()
                    p.add_argument("--lr", type=float)
                    p.add_argument("--epochs", type=int)
                    p.add_argument("--dead", type=int)
                    return p.parse_args()
            """,
            "engine.py": """
                class Trainer:
                    def __init__(self, args):
                        self.opt = args

                    def run(self):
                        for _ in range(self.opt.epochs):
                            self.step(self.opt)

                    def step(self, o):
                        print(getattr(o, "lr", 0))
            """,
        }
        assert unread(files) == "--dead"

    def test_module_level_options_are_followed_into_importers(self):
        files = {
            "train.py": "import options\nfrom options import args\nprint(args.lr, options.args.mixup)\n",
            "options.py": PARSER,
        }
        assert unread(files) == ""

    def test_global_statement(self):
        code = PARSER.replace("args = ", "args = None\ndef main():\n    global args\n    args = ")
        code += "\ndef use():\n    print(args.lr, args.mixup)\n"
        assert unread(code) == ""

    @pytest.mark.parametrize(
        "use",
        [
            "config = vars(args)\nprint(config['lr'], config['mixup'])",
            "args.__dict__['lr'], args.__dict__.get('mixup')",
            "print('%(lr)s %(mixup)s' % vars(args))",
            "a = {**vars(args)}\nprint(a['lr'], a['mixup'])",
            "def f(a=args):\n    return a.lr, a.mixup\n",
            "import copy\nb = copy.deepcopy(args)\nprint(b.lr, b.mixup)",
            "x, y = args, 1\nprint(x.lr, x.mixup)",
            "assert hasattr(args, 'mixup')\nprint(args.lr)",
            "f = lambda a: a.lr\nf(args)",
            "trainer = Trainer.from_argparse_args(args)",
        ],
    )
    def test_ways_to_read_options(self, use):
        assert unread(PARSER + use) == ""

    def test_parse_known_args(self):
        code = PARSER.replace("args = parser.parse_args()", "args, rest = parser.parse_known_args()")
        assert unread(code + "print(args.lr)\n") == "--mixup"
        code = PARSER.replace("args = parser.parse_args()", "args = parser.parse_known_args()[0]")
        assert unread(code + "print(args.lr)\n") == "--mixup"

    def test_value_that_is_only_handed_to_a_parameter_nobody_reads(self):
        code = PARSER + "def build(lr, mixup):\n    return lr\n\nbuild(args.lr, mixup=args.mixup)\n"
        assert unread(code) == "--mixup"

    def test_value_that_is_only_stored_in_a_local_name(self):
        code = PARSER + "def main():\n    mixup = args.mixup\n    print(args.lr)\n\nmain()\n"
        assert unread(code) == "--mixup"

    def test_hard_coded_number_of_epochs_is_named(self):
        code = PARSER.replace("mixup", "epochs") + "print(args.lr)\nfor epoch in range(200):\n    pass\n"
        finding = problems(config.option_never_read, code)[0]
        assert "train.py:9 loops over range(200)" in finding.message

    def test_description_launcher_and_self_declared_options_pass(self):
        code = PARSER + "print(args.lr, args.mixup)\n"
        extra = (
            'parser.add_argument("--local_rank", type=int)\n'
            'parser.add_argument("--name")\n'
            'parser.add_argument("--old", help="deprecated")\nargs = '
        )
        assert unread(code.replace("args = ", extra)) == ""

    def test_function_whose_caller_is_not_seen(self):
        code = PARSER.replace("args = parser.parse_args()", "def get():\n    return parser.parse_args()")
        assert unread(code) == ""

    def test_keys_that_another_script_reads_are_not_reported(self):
        files = {"train.py": LOAD + "print(cfg['lr'], cfg['T_max'], cfg['scheduler'])", "config.yaml": YAML}
        assert unread(files) == "weight_decay"
        assert unread(files, {"evaluate.py": "cfg['weight_decay']"}) == ""

    def test_anchors_interpolation_and_lists(self):
        text = "base: &b\n  lr: 1\nmodel:\n  <<: *b\nroot: data\npath: ${root}/x\nmilestones: [1, 2]\n"
        code = LOAD + "print(cfg['model']['lr'], cfg['path'], cfg['milestones'])"
        assert unread({"train.py": code, "config.yaml": text}) == ""

    def test_converters_to_namespaces_are_seen_through(self):
        code = LOAD + textwrap.dedent("""
            from types import SimpleNamespace

            def to_namespace(d):
                ns = SimpleNamespace()
                for k, v in d.items():
                    setattr(ns, k, to_namespace(v) if isinstance(v, dict) else v)
                return ns

            c = to_namespace(cfg)
            print(c.lr, c.T_max)
        """)
        assert unread({"train.py": code, "config.yaml": YAML}) == "weight_decay, scheduler"

    def test_json_and_toml(self):
        code = "import json, tomllib\ncfg = json.load(open('config.json'))\nt = tomllib.load(open('a.toml', 'rb'))\n"
        code += "print(cfg['lr'], t['train']['lr'])\n"
        files = {"train.py": code, "config.json": '{"lr": 1,\n "dead": 2}', "a.toml": "[train]\nlr = 1\ndead = 2\n"}
        found = {f.location: f.measured for f in problems(config.option_never_read, files)}
        assert found == {"config.json:2": "never read: dead", "a.toml:3": "never read: train.dead"}

    def test_json_data_are_no_configuration(self):
        code = "import json\na = json.load(open('annotations.json'))\nprint(a['images'])\n"
        assert_nothing(code, {"annotations.json": '{"images": [], "licenses": [], "info": {}}'})

    def test_data_class_and_plain_class(self):
        body = "class TrainConfig:\n    lr: float = 0.1\n    epochs: int = 3\n    dropout: float = 0.1\n"
        use = "cfg = TrainConfig()\nprint(cfg.lr, cfg.epochs)\n"
        assert unread("from dataclasses import dataclass\n@dataclass\n" + body + use) == "dropout"
        assert unread(body + "print(TrainConfig.lr, TrainConfig.epochs)\n") == "dropout"
        whole = "from dataclasses import dataclass, fields\n@dataclass\n" + body + use + "fields(cfg)\n"
        assert unread(whole) == ""
        hinted = "def run(c, d: TrainConfig | None = None) -> list[TrainConfig]:\n    return [c.lr, c.epochs]\n"
        assert (
            unread("from dataclasses import dataclass\n@dataclass\n" + body + hinted + "run(TrainConfig())\n")
            == "dropout"
        )
        own = body + "    def total(self):\n        return self.dropout\n"
        assert unread("from dataclasses import dataclass\n@dataclass\n" + own + use) == ""

    def test_dict_of_hyperparameters(self):
        code = "config = {'lr': 0.1, 'epochs': 3, 'dropout': 0.1}\nprint(config['lr'], config['epochs'])\n"
        assert unread(code) == "dropout"
        assert unread(code + "Model(**config)\n") == ""

    def test_dead_constant_is_a_warning(self):
        finding = problems(config.option_never_read, "WEIGHT_DECAY = 1e-4\nLR = 0.1\nprint(LR)\n")[0]
        assert finding.status is Status.WARN
        assert finding.measured == "never read: WEIGHT_DECAY"

    def test_hydra_is_left_alone(self):
        files = {"train.py": "import hydra\n" + LOAD, "config.yaml": YAML}
        with pytest.raises(NotSeenError):
            unread(files)

    def test_no_options_is_not_a_pass(self):
        with pytest.raises(NotSeenError):
            unread("import torch\n")
        with pytest.raises(NotSeenError):
            unread({"notes.txt": "x"})

    def test_what_was_checked_is_said(self):
        done = list(config.option_never_read(record({"train.py": PARSER + "print(args.lr, args.mixup)"})))
        assert [(f.status, f.measured) for f in done] == [(Status.PASS, "2 options, each read or handed on")]


def assert_nothing(code: str, files: dict[str, str]) -> None:
    with contextlib.suppress(NotSeenError):
        assert unread({"train.py": code, **files}) == ""


class TestTilde:
    @pytest.mark.parametrize(
        "code",
        [
            PARSER + "use = ~args.mixup\n",
            PARSER + "def f(a):\n    return ~a.mixup\nf(args)\n",
            "def f(train: bool):\n    return ~train\n",
            "def f(train=True):\n    if ~train:\n        pass\n",
            "flag = False\nif ~flag:\n    pass\n",
            "import torch\nok = torch.cuda.is_available()\nx = ~ok\n",
            "done = not 3\nx = ~done\n",
        ],
    )
    def test_tilde_on_a_bool_is_found(self, code):
        assert len(problems(config.tilde_on_bool, code)) == 1

    def test_boolean_of_a_file(self):
        files = {"train.py": LOAD + "x = ~cfg['amp']\ny = ~cfg['bits']\n", "config.yaml": "amp: true\nbits: 3\n"}
        assert [f.measured for f in problems(config.tilde_on_bool, files)] == ["~cfg['amp']"]

    @pytest.mark.parametrize(
        "code",
        [
            "import torch\nmask = torch.rand(3) > 0.5\nx = ~mask\n",
            "def f(mask, index=3):\n    return ~mask, ~index\n",
            "def f(mask=None):\n    return ~mask\n",
            "x = (a == b)\ny = ~x\n",
            PARSER + "x = ~int(args.lr)\n",
            "flag = True\nflag = compute()\nx = ~flag\n",
        ],
    )
    def test_tensors_and_integers_pass(self, code):
        assert problems(config.tilde_on_bool, code) == []


class TestArgumentTypes:
    def test_type_bool(self):
        code = PARSER.replace('action="store_true"', "type=bool, default=True")
        assert [f.location for f in problems(config.type_bool, code)] == ["train.py:6"]
        code = PARSER.replace('action="store_true"', "type=lambda s: bool(s)")
        assert len(problems(config.type_bool, code)) == 1

    @pytest.mark.parametrize(
        "kind", ["type=str2bool", "type=int", "type=lambda s: s == 'true'", "type=lambda s: bool(int(s))"]
    )
    def test_parsing_functions_pass(self, kind):
        code = PARSER.replace('action="store_true"', kind)
        assert problems(config.type_bool, code) == []

    def test_int_with_float_default(self):
        assert len(problems(config.int_with_float_default, PARSER.replace("type=float", "type=int"))) == 1

    def test_whole_float_and_float_type_pass(self):
        assert problems(config.int_with_float_default, PARSER) == []
        code = PARSER.replace("type=float, default=0.1", "type=int, default=1e4")
        assert problems(config.int_with_float_default, code) == []


class TestShadowed:
    @pytest.mark.parametrize(
        "code",
        [
            PARSER + "args.lr = 0.5\n",
            PARSER + "lr = args.lr\nlr = 0.5\nprint(lr)\n",
            PARSER + "def main():\n    args.lr = 0.5\nmain()\n",
        ],
    )
    def test_constant_after_parsing_is_found(self, code):
        assert len(problems(config.option_shadowed, code)) == 1

    def test_key_of_a_file(self):
        files = {"train.py": LOAD + "cfg['lr'] = 3\n", "config.yaml": YAML}
        assert len(problems(config.option_shadowed, files)) == 1

    @pytest.mark.parametrize(
        "code",
        [
            PARSER + "if args.mixup:\n    args.lr = 0.5\n",
            PARSER + "args.lr = args.lr * 2\n",
            PARSER + "args.distributed = False\n",
            PARSER + "lr = args.lr\nprint(lr)\nlr = 0.5\n",
            PARSER + "args.lr = None\n",
        ],
    )
    def test_conditions_and_computed_values_pass(self, code):
        assert problems(config.option_shadowed, code) == []


HYDRA = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg):
    torch.manual_seed(cfg.seed)
    optimizer = hydra.utils.instantiate(cfg.optimizer, model.parameters())
    for epoch in range(cfg.trainer.epochs):
        pass

main()
"""
HYDRA_FILES = {
    "conf/config.yaml": "defaults:\n  - trainer: short\n  - optimizer: sgd\nseed: 0\nhydra:\n  run:\n    dir: out\n",
    "conf/trainer/short.yaml": "epochs: 5\n",
    "conf/optimizer/sgd.yaml": "_target_: torch.optim.SGD\nlr: 0.1\nweight_decay: 0.0\n",
}


def hydra(*, code: str = HYDRA, **files: str) -> str:
    changed = {name.replace("__", "/") + ".yaml": text for name, text in files.items()}
    return unread({"train.py": code, **HYDRA_FILES, **changed})


class TestHydra:
    def test_unread_key_of_a_group_is_found_with_its_file(self):
        files = {"train.py": HYDRA, **HYDRA_FILES, "conf/trainer/short.yaml": "epochs: 5\nclip: 1.0\n"}
        finding = problems(config.option_never_read, files)[0]
        assert finding.measured == "never read: trainer.clip"
        assert finding.location == "conf/trainer/short.yaml:2"

    def test_unread_key_of_a_file_that_says_where_it_belongs(self):
        assert hydra(conf__experiment__one="# @package _global_\nseed: 3\nmixup: 0.2\n") == "mixup"
        assert hydra(conf__extra__loss="# @package trainer\nsmoothing: 0.1\n") == "trainer.smoothing"
        config_file = HYDRA_FILES["conf/config.yaml"].replace("  - trainer: short\n", "  - plan@trainer: short\n")
        assert hydra(conf__config=config_file, conf__plan__short="epochs: 5\nclip: 1\n") == "trainer.clip"

    def test_composed_in_code(self):
        code = "import hydra\nhydra.initialize(config_path='conf')\ncfg = hydra.compose('config')\nprint(cfg.seed)\n"
        assert hydra(code=code + "train(**cfg.trainer)\nbuild(cfg.optimizer)\n") == ""
        assert hydra(code=code + "build(cfg.optimizer)\n") == "trainer"

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("", ""),
            ("    pass", "    train(**cfg.trainer)"),
            ("cfg.trainer.epochs", "cfg['trainer']['epochs']"),
            ("    pass", "    log(OmegaConf.to_yaml(cfg))"),
        ],
    )
    def test_all_keys_are_read(self, old, new):
        assert hydra(code=HYDRA.replace(old, new)) == ""

    def test_handed_to_a_library(self):
        assert hydra(code=HYDRA.replace("cfg.trainer.epochs", "plan(cfg.trainer)"), conf__trainer__short="a: 1\n") == ""

    def test_interpolated_from_another_file(self):
        files = {"conf__config": HYDRA_FILES["conf/config.yaml"] + "width: 3\n"}
        assert hydra(**files) == "width"
        assert hydra(**files, conf__optimizer__sgd="_target_: torch.optim.SGD\nlr: ${width}\n") == ""

    def test_several_folders_are_not_judged(self):
        code = HYDRA + "\n@hydra.main(config_path='other')\ndef second(cfg):\n    pass\n"
        with pytest.raises(NotSeenError):
            hydra(code=code, conf__trainer__short="epochs: 5\nclip: 1.0\n")

    def test_omegaconf_without_hydra(self):
        code = (
            "from omegaconf import OmegaConf\ncfg = OmegaConf.merge(OmegaConf.load('a.yaml'), OmegaConf.from_cli())\n"
        )
        files = {"train.py": code + "OmegaConf.set_readonly(cfg, True)\nprint(cfg.optim.lr)\n"}
        assert unread({**files, "a.yaml": "optim:\n  lr: 0.1\n  decay: 0.0\n"}) == "optim.decay"
        assert unread({**files, "a.yaml": "optim:\n  lr: 0.1\n"}) == ""
