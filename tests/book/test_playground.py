"""The playground: its paths beside torch and `support`, its address, its controls, its looks."""

import inspect
import math
import re
from functools import partial
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from conftest import PHONE, SITE, Visit, Visitors
from torch.optim import SGD

from support import surfaces
from support.optim import OPTIMIZERS, SAM, clip
from support.optim.base import parameters
from support.optim.wrapper import Wrapper

PAGE = "book/playground.html"
SURFACES = {
    "ravine": surfaces.ravine(),
    "double_well": surfaces.double_well(),
    "rosenbrock": surfaces.rosenbrock,
    "himmelblau": surfaces.himmelblau,
    "saddle": surfaces.saddle,
}
METHODS = [
    *(
        "sgd",
        "momentum",
        "nesterov",
        "adagrad",
        "rmsprop",
        "adadelta",
        "adam",
        "amsgrad",
        "nadam",
        "adamw",
    ),
    *("lion", "clipped_sgd", "clipped_sgd_coordinate", "clipped_sstm", "sam"),
]

STEPS = 200
TOLERANCE = 1e-9  # relative where numbers are above 1, absolute below
RADIUS = 100.0  # ten times the width of the widest frame
# Where the problem itself enlarges a difference of 1e-12 in the start a hundredfold, rounding may part the paths
# of two correct programs; from there on nothing is compared. The rule looks at the reference alone.
SHIFT, SPREAD = 1e-12, 1e-10
LEAST_SHARE = (
    1 / 3
)  # of the steps that are compared, for each method on each surface (on the saddle all run away)


@pytest.fixture(scope="module")
def page(chromium, address):
    """Return the page, opened once, for tests that only compute."""
    visitors = Visitors(chromium, address)
    yield visitors(PAGE).page
    visitors.leave()


@pytest.fixture
def double():
    """Let torch keep its own numbers in float64: the product of NAdam is a float32 otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def settings(page, surface, method, **chosen):
    """Return all settings of a path: the page's defaults, and what is chosen."""
    usual = page.evaluate("([s, m]) => playground.defaults(s, m)", [surface, method])
    return usual | {key: value for key, value in chosen.items() if key in usual}


# ------------------------------------------------------------------------------- what is there


def test_every_surface_of_the_package_is_on_the_page(page):
    made = [
        thing.__name__
        for _, thing in inspect.getmembers(surfaces, inspect.isfunction)
        if inspect.signature(thing).return_annotation is surfaces.Surface
    ]
    ready = [name for name, _ in inspect.getmembers(surfaces, is_surface)]
    there = page.evaluate("Object.keys(playground.SURFACES)")
    assert set(there) == {*made, *ready} == set(SURFACES)
    assert page.locator("#pg-surface option").count() == len(there)


def is_surface(thing):
    return isinstance(thing, surfaces.Surface)


def test_every_method_of_the_page_is_one_of_torch_or_support(page):
    methods = page.evaluate("Object.entries(playground.METHODS)")
    assert [name for name, _ in methods] == METHODS
    for name, method in methods:
        assert method.get("optimizer", name) in OPTIMIZERS
    assert page.locator("#pg-method option").count() == len(methods)


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_are_those_of_torch_and_support(page, method):
    hyper = page.evaluate("m => playground.METHODS[m].hyper", method)
    constructor = SAM if method == "sam" else OPTIMIZERS[optimizer_of(method)]
    known = inspect.signature(constructor).parameters
    hyper.pop("L", None), hyper.pop("B", None)  # those have none
    for name, value in arguments(method, hyper).items():
        default = known[name].default
        assert value == (tuple(default) if name == "betas" else default), name


@pytest.mark.parametrize("name", SURFACES)
def test_surfaces_are_those_of_the_package(page, name):
    surface, there = (
        SURFACES[name],
        page.evaluate("s => ({...playground.SURFACES[s]})", name),
    )
    assert there["domain"] == [list(interval) for interval in surface.domain]
    assert np.allclose(
        np.array(there["minima"]).reshape(-1, 2),
        np.array(surface.minima).reshape(-1, 2),
        rtol=0,
        atol=1e-12,
    )
    lowest = page.evaluate("s => playground.lowest(playground.SURFACES[s])", name)
    if surface.minima:
        best = surface(torch.tensor(surface.minima[0], dtype=torch.float64)).item()
        assert lowest == pytest.approx(best, abs=1e-14)
    else:
        assert lowest is None


def random_points(surface, count, seed=0):
    """Return points of the frame of a surface, of shape (count, 2)."""
    low, high = torch.tensor(surface.domain, dtype=torch.float64).T
    shares = torch.rand(
        count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return low + shares * (high - low)


@pytest.mark.parametrize("name", SURFACES)
def test_values_and_gradients_are_those_of_autograd(page, name):
    surface, points = SURFACES[name], random_points(SURFACES[name], 500)
    values, gradients = page.evaluate(
        """([name, points]) => {
          const surface = playground.SURFACES[name];
          return [points.map(p => surface.value(...p)), points.map(p => surface.gradient(...p))];
        }""",
        [name, points.tolist()],
    )
    assert np.allclose(values, surface(points), rtol=1e-13, atol=1e-12)
    assert np.allclose(gradients, surface.gradient(points), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", SURFACES)
def test_the_smoothness_is_the_largest_curvature_in_the_frame(page, name):
    surface = SURFACES[name]
    (left, right), (bottom, top) = surface.domain
    grid = torch.cartesian_prod(
        torch.linspace(left, right, 21, dtype=torch.float64),
        torch.linspace(bottom, top, 21, dtype=torch.float64),
    )
    hessians = torch.func.vmap(torch.func.hessian(surface.function))(grid)
    largest = torch.linalg.eigvalsh(hessians).abs().max().item()
    said = page.evaluate("s => playground.SURFACES[s].smoothness", name)
    assert largest <= said + 1e-9 < 1.01 * largest


# --------------------------------------------------------------------- paths beside the references


def optimizer_of(method):
    return "clipped_sgd" if method.startswith("clipped_sgd") else method


def arguments(method, hyper):
    """Return hyper-parameters of the page under the names that torch and `support` have for them."""
    names = {"beta2": {"rmsprop": "alpha", "adadelta": "rho"}.get(method, "beta2")}
    named = {names.get(key, key): value for key, value in hyper.items()}
    if "beta1" in named:
        named["betas"] = (named.pop("beta1"), named.pop("beta2"))
    return named


class Clipped(Wrapper):
    """Any optimizer with every gradient clipped by its norm."""

    def __init__(self, optimizer, level):
        super().__init__(optimizer, {})
        self.level = level

    def change_gradients(self):
        """Clip them in place."""
        own = parameters(self)
        clipped = clip([parameter.grad for parameter in own], self.level)
        for parameter, gradient in zip(own, clipped, strict=True):
            parameter.grad.copy_(gradient)


def reference(method, chosen, hyper_names, params):
    """Return the optimizer of torch or `support` with the settings of a path of the page."""
    hyper = {key: chosen[key] for key in hyper_names}
    level = chosen["clip"] or math.inf
    if "B" in hyper:
        hyper["B"] = hyper["B"] or math.inf
    if method == "sam":
        return Clipped(SAM(SGD(params, lr=hyper["lr"]), rho=hyper["rho"]), level)
    if method.startswith("clipped_sgd"):
        kind = "coordinate" if method.endswith("coordinate") else "norm"
        return OPTIMIZERS["clipped_sgd"](params, level=level, clip=kind, **hyper)
    optimizer = OPTIMIZERS[method](params, **arguments(method, hyper))
    return Clipped(optimizer, level) if chosen["clip"] else optimizer


def cases(page, surface, method):
    """Return four settings: usual and other hyper-parameters, three starts, clipped and not."""
    usual = settings(page, surface, method)
    points = random_points(SURFACES[surface], 2, seed=METHODS.index(method)).tolist()
    size = (
        SURFACES[surface]
        .gradient(torch.tensor([usual["x"], usual["y"]], dtype=torch.float64))
        .norm()
        .item()
    )
    other = dict(momentum=0.5, beta1=0.6, beta2=0.8, eps=1e-3, weight_decay=0.1, rho=0.2)
    other |= {
        "a": 2.0,
        "B": 0.05,
        **{key: usual[key] / 3 for key in ("lr", "L") & usual.keys()},
    }
    chosen = [
        dict(clip=0.0),
        dict(clip=0.0, x=points[0][0], y=points[0][1]) | other,
        dict(clip=size / 5, x=points[1][0], y=points[1][1]),
        dict(clip=size / 50) | other,
    ]
    common = dict(steps=STEPS, noise=0)
    return [settings(page, surface, method, **common | one) for one in chosen]


def stable_steps(path, shifted):
    """Return how many steps of a path are compared: see RADIUS and SPREAD."""
    near = path.isfinite().all(1) & (path.abs() <= RADIUS).all(1)
    firm = ((path - shifted).abs() <= SPREAD * path.abs().clamp(min=1)).all(1)
    return int((near & firm).long().cumprod(0).sum())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("method", METHODS)
def test_paths_are_those_of_torch_and_support(page, method, surface):
    names, compared = page.evaluate("m => playground.hyperOf(m)", method), 0
    wanted = cases(page, surface, method)
    run = "([name, all]) => all.map(one => playground.run(name, one).points.map(p => p.map(String)))"
    ours = np.array(page.evaluate(run, [surface, wanted])).astype(
        float
    )  # with NaN and infinities
    for chosen, path in zip(wanted, ours, strict=True):
        make, start = partial(reference, method, chosen, names), [chosen["x"], chosen["y"]]
        right = surfaces.descend(SURFACES[surface], start, make, STEPS)
        moved = [start[0] + SHIFT, start[1] - SHIFT]
        steps = stable_steps(right, surfaces.descend(SURFACES[surface], moved, make, STEPS))
        right, path = right.numpy()[:steps], path[:steps]
        error = np.abs(path - right) / np.maximum(1, np.abs(right))
        assert error.max() <= TOLERANCE, (chosen, int(error.max(1).argmax()))
        assert steps == 1 or np.ptp(path, axis=0).max() > 0
        compared += steps

    assert compared >= LEAST_SHARE * len(wanted) * (STEPS + 1), compared


# --------------------------------------------------------------------------------------- noise


def test_the_noise_is_standard_normal_and_its_coordinates_are_independent(page):
    draw = "seed => { const d = playground.normal(seed); return Array.from({length: 40000}, d); }"
    z = np.array(page.evaluate(draw, 7))
    assert np.abs(z.mean(0)).max() < 4 / 200
    assert np.abs(z.var(0) - 1).max() < 4 * 2**0.5 / 200
    assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / 200
    assert abs((z[1:] * z[:-1]).mean()) < 4 / 200
    assert abs((np.abs(z) > 1.959964).mean() - 0.05) < 4 * (0.0475 / 80_000) ** 0.5


def test_neighbouring_seeds_have_different_noise(page):
    draw = "() => Array.from({length: 1000}, (_, seed) => playground.normal(seed)())"
    z = np.array(page.evaluate(draw))
    assert np.abs(z.mean(0)).max() < 4 / 1000**0.5
    assert np.abs(z.var(0) - 1).max() < 4 * (2 / 1000) ** 0.5
    assert np.abs((z[1:] * z[:-1]).mean(0)).max() < 4 / 1000**0.5


def test_noise_is_added_to_the_gradient_before_clipping_and_repeats_with_its_seed(page):
    run = "one => playground.run('ravine', one).points"
    noisy = settings(page, "ravine", "sgd", noise=0.5, seed=3, steps=400, lr=0.01)
    path = np.array(page.evaluate(run, noisy))
    assert page.evaluate(run, noisy) == path.tolist()
    assert page.evaluate(run, noisy | {"seed": 4}) != path.tolist()
    draw = "() => { const d = playground.normal(3); return Array.from({length: 400}, d); }"
    noise = -np.diff(path, axis=0) / 0.01 - path[:-1] * [1, 50]
    assert np.allclose(noise, 0.5 * np.array(page.evaluate(draw)), rtol=0, atol=1e-10)
    clipped = np.array(page.evaluate(run, noisy | {"clip": 0.2}))
    lengths = np.linalg.norm(np.diff(clipped, axis=0), axis=1)
    assert lengths.max() <= 0.01 * 0.2 * (1 + 1e-12)


# --------------------------------------------------------------------------------------- using


def state(page):
    """Return what the address says."""
    return {key: value[0] for key, value in parse_qs(page.url.partition("#")[2]).items()}


def drawn(page):
    """Return the lines in the plane, the shown path first."""
    lines = "[...document.querySelectorAll('.pg-plane .pg-line path:first-child')].map(p => p.getAttribute('d'))"
    return page.evaluate(lines)[::-1]


def said(page, part):
    return page.locator(f"[data-part={part}]").inner_text()


def number(page, key):
    return float(page.locator(f"#pg-{key}-number").input_value())


def put(page, key, text):
    """Type a number into the field of a setting."""
    field = page.locator(f"#pg-{key}-number")
    field.fill(text)
    field.press("Enter")


def wait_for_address(page, text):
    page.wait_for_function("text => location.hash.includes(text)", arg=text)


def follow(page, fragment):
    """Follow a link to another state on the page that is open."""
    page.evaluate("text => { location.hash = text; }", fragment)


def test_the_arrow_keys_move_a_slider_the_path_and_the_address(visit):
    page = visit(PAGE).page
    before, usual = drawn(page), number(page, "lr")
    page.locator("#pg-method").focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "pg-lr":
            break
    slider = page.locator("#pg-lr")
    assert slider.evaluate(
        "e => e === document.activeElement && e.matches(':focus-visible')"
    )
    assert slider.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    moved = number(page, "lr")
    assert moved == pytest.approx(usual + 0.001)
    wait_for_address(page, f"lr={moved}&")
    assert slider.get_attribute("aria-valuetext") == str(moved)
    assert drawn(page) != before


def test_every_control_has_a_label(visit):
    page = visit(PAGE).page
    named = """() => [...document.querySelectorAll('#pg :is(input, select)')]
      .filter(e => !e.labels.length && !e.hasAttribute('aria-label')).map(e => e.id)"""
    for method in METHODS:
        page.locator("#pg-method").select_option(method)
        assert page.evaluate(named) == []
        assert page.locator(".pg-hyper .pg-control").count() >= 1


def test_the_start_moves_with_the_mouse_and_with_the_arrow_keys(visit):
    page = visit(PAGE).page
    plane = page.locator(".pg-plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] - 30)
    page.mouse.up()
    wait_for_address(page, "x=0.")
    assert 0 < float(state(page)["x"]) < 1.2
    assert 0 < float(state(page)["y"]) < 0.6
    put(page, "x", "0.5")
    put(page, "y", "0.123")
    plane.focus()
    page.keyboard.press("ArrowLeft")
    assert number(page, "x") == pytest.approx(0.5 - 0.024, abs=0.006)
    assert number(page, "y") == 0.123, "it stays where only x moves"
    page.keyboard.press("ArrowDown")
    assert number(page, "y") == pytest.approx(0.123 - 0.012, abs=0.006)
    for _ in range(30):
        page.keyboard.press("Shift+ArrowLeft")
    assert number(page, "x") == -1.2, "it stays in the frame"


def test_an_address_sets_the_controls(visit):
    values = dict(lr=0.3, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.05, noise=2)
    values |= dict(seed=5, clip=30, x=-1.5, y=2.5, steps=77)
    fragment = "&".join(f"{key}={value}" for key, value in values.items())
    others = "keep=method:momentum,momentum:0.5,noise:0&keep=method:sgd&at=20"
    page = visit(f"{PAGE}#surface=himmelblau&method=adamw&{fragment}&{others}").page
    for key, value in values.items():
        assert number(page, key) == value
        assert float(page.locator(f"#pg-{key}").get_attribute("aria-valuetext")) == value
    assert page.locator("#pg-surface").input_value() == "himmelblau"
    assert page.locator("#pg-method").input_value() == "adamw"
    assert said(page, "step") == "20 of 77"
    rows = page.locator("[data-part=legend] li")
    assert len(drawn(page)) == rows.count() == 3
    assert "γ = 0.5" in rows.nth(1).inner_text()
    assert said(page, "note") == ""


def test_the_rule_that_is_shown_is_that_of_the_method(visit):
    page = visit(PAGE).page
    shown = "[...document.querySelectorAll('.pg-rule')].filter(e => e.offsetHeight).map(e => e.className)"
    assert page.locator(".pg-rule").count() == len(METHODS)
    for method in METHODS:
        page.locator("#pg-method").select_option(method)
        (rule,) = page.evaluate(shown)
        assert f"pg-{method.replace('_', '-')}" in rule.split()
        assert page.locator(".pg-rule:visible mjx-container").count() >= 1
        assert page.locator(".pg-rule:visible mjx-merror").count() == 0


def test_what_is_written_into_the_address_is_read_back(page):
    again = """([surface, methods]) => {
      const [shown, ...kept] = methods.map((method, k) =>
        ({...playground.defaults(surface, method), noise: k, x: 0.1, steps: 9}));
      const text = playground.format({shown, kept, at: 4}), read = playground.parse(text);
      return [{shown, kept, at: 4, notes: []}, read, text, playground.format(read)];
    }"""
    for surface in SURFACES:
        for first in range(0, len(METHODS), 5):
            meant, read, text, written = page.evaluate(
                again, [surface, METHODS[first : first + 7]]
            )
            assert read == meant
            assert text == written


BROKEN = [
    (
        "surface=ravine&lr=abc",
        "must be a number from 0.00001 to 10, not “abc”; it is 0.025",
    ),
    ("method=adamm", "no method “adamm”; momentum is taken"),
    ("surface=constructor", "no surface “constructor”; ravine is taken"),
    ("method=__proto__&surface=saddle", "no method “__proto__”"),
    ("surface=ravine&lr=-1", "not “-1”; it is 0.025"),
    ("lr=NaN", "not “NaN”"),
    ("lr=Infinity", "not “Infinity”"),
    ("lr=", "not “”"),
    ("momentum=1", "momentum must be a number from 0 to 0.999"),
    ("x=7", "x must be a number from -1.2 to 1.2"),
    ("steps=2.5", "steps must be a whole number from 1 to 500"),
    ("steps=1e9", "steps must be a whole number"),
    ("at=-3", "at must be a step"),
    ("wind=3", "no setting “wind”"),
    ("&".join(["keep=lr:0.01"] * 7), "t most 6 paths"),
    ("keep=method:nobody", "no method “nobody”"),
    ("keep=lr:x", "lr must be a number"),
    ("keep=,,:,", "no setting"),
    ("=%E0%A4%A&<script>=1", "no setting"),
]


def check_complaint(seen, complaint):
    assert complaint in said(seen.page, "note"), seen.page.url
    assert seen.page.locator("[data-part=note]").is_visible()
    assert drawn(seen.page)
    assert "NaN" not in "".join(drawn(seen.page))
    assert seen.complaints == []


@pytest.mark.parametrize(("fragment", "complaint"), BROKEN[:2])
def test_a_broken_address_is_noted_and_the_default_is_taken(visit, fragment, complaint):
    check_complaint(visit(f"{PAGE}#{fragment}"), complaint)


def test_a_broken_link_on_the_page_is_noted_too(visit):
    seen = visit(PAGE)
    for fragment, complaint in BROKEN:
        follow(seen.page, fragment)
        noted = "document.querySelector('[data-part=note]').textContent"
        seen.page.wait_for_function(f"{noted} !== ''")
        check_complaint(seen, complaint)
        follow(seen.page, "")
        seen.page.wait_for_function(f"{noted} === ''")


def test_an_anchor_of_the_page_is_no_state(visit):
    page = visit(f"{PAGE}#things-to-try").page
    assert said(page, "note") == ""
    page.locator("#pg-lr").press("ArrowRight")
    wait_for_address(page, "lr=")
    before = number(page, "lr")
    follow(page, "how-to-read-the-plots")
    page.wait_for_timeout(300)
    assert number(page, "lr") == before
    assert page.url.endswith("#how-to-read-the-plots")


def test_a_wrong_number_is_refused_with_the_right_range(visit):
    page = visit(PAGE).page
    put(page, "momentum", "1.5")
    assert "momentum must be a number from 0 to 0.999" in said(page, "note")
    assert number(page, "momentum") == 0.9
    put(page, "momentum", "0.75")
    assert said(page, "note") == ""
    wait_for_address(page, "momentum=0.75")


def test_paths_are_kept_compared_and_removed(visit):
    page = visit(PAGE).page
    keep, rows = page.locator("[data-part=keep]"), page.locator("[data-part=legend] li")
    keep.click()
    page.locator("#pg-method").select_option("sgd")
    wait_for_address(page, "method=sgd")
    assert rows.count() == len(drawn(page)) == 2
    assert "Gradient descent: η = 0.025" in rows.nth(0).inner_text()
    assert "Momentum: η = 0.025, γ = 0.9" in rows.nth(1).inner_text()
    assert state(page)["keep"] == "method:momentum"
    colors = "[...document.querySelectorAll('.pg-plane .pg-line')].map(e => getComputedStyle(e).stroke)"
    assert len(set(page.evaluate(colors))) == 2
    for _ in range(5):
        keep.click()
    assert keep.is_disabled()
    assert rows.count() == len(set(page.evaluate(colors))) == 7
    rows.nth(1).get_by_role("button").click()
    assert rows.count() == len(drawn(page)) == 6
    assert not keep.is_disabled()
    assert page.evaluate("document.activeElement.dataset.part") == "keep"
    page.locator("#pg-surface").select_option("saddle")
    assert rows.count() == 1
    assert "kept paths belonged to the other surface" in said(page, "note")


def test_a_method_keeps_what_still_has_a_meaning(visit):
    page = visit(PAGE).page
    put(page, "lr", "0.031")
    put(page, "noise", "0.5")
    page.locator("#pg-method").select_option("sgd")
    assert (number(page, "lr"), number(page, "noise")) == (0.031, 0.5)
    page.locator("#pg-method").select_option("adam")
    assert (number(page, "lr"), number(page, "noise")) == (0.1, 0.5), (
        "another kind of step size"
    )
    page.locator("#pg-method").select_option("clipped_sgd")
    assert number(page, "clip") > 0
    page.locator("#pg-method").select_option("momentum")
    assert (number(page, "clip"), number(page, "momentum")) == (0, 0.9)
    page.locator("#pg-surface").select_option("himmelblau")
    assert (number(page, "lr"), number(page, "x"), number(page, "noise")) == (0.005, 0, 0.5)


def test_the_link_is_copied_and_opens_the_same_paths(visit, address):
    seen = visit(f"{PAGE}#surface=double_well&method=nesterov&keep=method:sgd")
    page = seen.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    put(page, "momentum", "0.95")
    page.locator("[data-part=copy]").click()
    page.wait_for_function("document.querySelector('[data-part=note]').textContent !== ''")
    assert said(page, "note") == "The link is copied."
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{address}{PAGE}#surface=double_well&method=nesterov&lr=")
    assert "momentum=0.95" in link
    again = visit(link.removeprefix(address))
    assert drawn(again.page) == drawn(page)
    assert said(again.page, "note") == ""
    assert seen.complaints == again.complaints == []


def test_without_a_clipboard_the_page_says_where_the_link_is(visit):
    page = visit(PAGE).page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.locator("[data-part=copy]").click()
    assert "address bar" in said(page, "note")
    assert state(page)["surface"] == "ravine"


def test_reset_and_the_back_button(visit):
    page = visit(f"{PAGE}#surface=saddle&method=sgd").page
    page.locator("[data-part=reset]").click()
    assert page.locator("#pg-surface").input_value() == "ravine"
    page.go_back()
    page.wait_for_function("document.querySelector('#pg-surface').value === 'saddle'")


def test_every_link_to_a_state_of_the_page_is_understood(visit):
    page = visit(PAGE).page
    links = page.locator("a[data-state]")
    assert links.count() >= 4
    for link in links.all():
        link.click()
        wait_for_address(page, link.get_attribute("data-state"))
        page.wait_for_function(
            "document.querySelectorAll('.pg-plane .pg-line').length >= 2"
        )
        assert said(page, "note") == ""
        assert page.locator(".pg-plane").evaluate("e => e.getBoundingClientRect().top >= 0")


STATES = sorted(
    {
        (str(page.relative_to(SITE)), fragment)
        for page in SITE.glob("[lbn]*/*.html")
        for fragment in re.findall(r'playground\.html#([^"]*=[^"]*)"', page.read_text())
    }
)


def test_lectures_link_to_states():
    assert {page for page, _ in STATES} >= {
        "lectures/gradient_descent.html",
        "lectures/momentum.html",
        "lectures/surfaces_and_saddles.html",
    }


@pytest.mark.parametrize(("origin", "fragment"), STATES)
def test_every_link_to_a_state_from_another_page_is_understood(visit, origin, fragment):
    fragment = fragment.replace("&amp;", "&")
    page = visit(f"{PAGE}#{fragment}").page
    assert said(page, "note") == "", origin
    chosen = {
        key: values[-1] for key, values in parse_qs(fragment).items() if key != "keep"
    }
    now = parse_qs(page.evaluate("location.hash.slice(1)") or fragment)
    assert {key: now.get(key, [chosen[key]])[-1] for key in chosen} == chosen


def test_what_the_page_says_about_its_states_is_so(page):
    states = page.evaluate(
        "[...document.querySelectorAll('a[data-state]')].map(a => a.dataset.state)"
    )
    run = """one => {
      const {shown, kept} = playground.parse(one);
      return [shown, ...kept].map(settings => playground.run(settings.surface, settings));
    }"""
    ravine, border, saddle, clipping, noise = (page.evaluate(run, one) for one in states)
    assert ravine[0]["values"][-1] < ravine[1]["values"][-1]
    below, above = (np.abs(np.array(path["points"])[:, 1]) for path in border)
    assert (np.diff(below) < 0).all()
    assert (np.diff(above) > 0).all()
    nearer = page.evaluate(run, states[2].replace("keep=", "y=0.000001&keep=", 1))
    adam, *others = (
        (path["left"], near["left"]) for path, near in zip(saddle, nearer, strict=True)
    )
    assert adam[0] == adam[1] > 0
    assert all(near > far + 10 for far, near in others)
    assert [clipping[0]["left"], clipping[1]["left"], clipping[1]["far"]] == [-1, 2, 5]
    (lower, _) = page.evaluate(run, states[3].replace("clip=50", "clip=5"))
    assert lower["values"][-1] > 10 * clipping[0]["values"][-1]
    large, small = (np.array(path["values"]) for path in noise)
    assert large[-100:].mean() > 5 * small[-100:].mean()
    assert (large < 0.2).argmax() < (small < 0.2).argmax()


def test_the_path_is_played(visit):
    page = visit(f"{PAGE}#steps=20&keep=method:sgd").page
    whole = drawn(page)
    play = page.locator("[data-part=play]")
    play.click()
    step = "document.querySelector('[data-part=step]').textContent"
    page.wait_for_function(f"/^[1-9] of 20/.test({step})")
    assert play.inner_text() == "Pause"
    play.click()
    assert play.inner_text() == "Play"
    assert all(len(part) < len(line) for part, line in zip(drawn(page), whole, strict=True))
    play.click()
    page.wait_for_function(
        "document.querySelector('[data-part=play]').textContent === 'Play'"
    )
    assert said(page, "step") == "20 of 20"
    assert drawn(page) == whole
    page.locator("#pg-at").press("ArrowLeft")
    assert said(page, "step") == "19 of 20"
    wait_for_address(page, "at=19")
    assert "after 19 of 20 steps" in said(page, "readout")


def test_who_wants_less_motion_gets_the_path_at_once(chromium, address):
    context = chromium.new_context(reduced_motion="reduce")
    page = Visit(context.new_page()).go(f"{address}{PAGE}#steps=20&at=3").page
    assert said(page, "step") == "3 of 20"
    page.get_by_role("button", name="Show all").click()
    assert said(page, "step") == "20 of 20"
    context.close()


def test_nothing_is_hidden(visit):
    seen = visit(PAGE)
    for fragment, text in [
        ("surface=ravine&method=sgd&lr=0.03", "stays in the frame"),
        ("surface=ravine&method=sgd&lr=0.045", "leaves the frame at step 2"),
        (
            "surface=ravine&method=momentum&lr=0.06",
            "leaves the frame at step 1, is back at the end",
        ),
        ("surface=ravine&method=sgd&lr=1", "diverges: farther than 10⁶ from step 4 on"),
        ("surface=rosenbrock&method=sgd&lr=1", "diverges: farther than 10⁶ from step 2 on"),
        ("surface=saddle&method=sgd", "there is no minimum"),
    ]:
        follow(seen.page, fragment)
        seen.page.wait_for_function(
            "text => document.querySelector('[data-part=readout]').textContent.includes(text)",
            arg=text,
        )
        outside = "leaves" in text or "diverges" in text
        assert outside == (text in said(seen.page, "legend"))
        written = re.sub(r'href="data:[^"]*"', "", seen.page.locator("#pg").inner_html())
        assert not re.search("NaN|undefined|Infinity", written)
    assert seen.complaints == []


# --------------------------------------------------------------------------------------- looks


def looks(page):
    """Return the colours of an axis, a path, a contour and the text and ground of controls."""
    return page.evaluate(
        """() => [['.pg-plane > text', 'fill'], ['.pg-plane .pg-line', 'stroke'], ['.pg-contours', 'stroke'],
          ['#pg-method', 'color'], ['#pg-lr-number', 'backgroundColor']]
          .map(([e, property]) => getComputedStyle(document.querySelector(e))[property])"""
    )


def test_it_follows_the_theme_also_when_it_changes(visit):
    seen = visit(PAGE)
    light = looks(seen.page)
    seen.page.evaluate("document.documentElement.dataset.theme = 'dark'")
    dark = looks(seen.page)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert looks(visit(PAGE, theme="dark").page) == dark
    assert seen.complaints == []


OVERFLOW = """() => document.documentElement.scrollWidth > document.documentElement.clientWidth
  || [...document.querySelectorAll('#pg :is(.pg-plane, .pg-curve, input, select, button)')]
    .some(e => e.getBoundingClientRect().right > innerWidth)"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_method_fits_every_screen(visit, theme):
    seen = visit(PAGE, PHONE, theme)
    for width in (360, 400, 420, 700, 1000, 1280):
        seen.page.set_viewport_size({"width": width, "height": 844})
        for method in METHODS:
            seen.page.locator("#pg-method").select_option(method)
            assert not seen.page.evaluate(OVERFLOW), (width, method)
    assert seen.complaints == []


def test_nothing_above_the_rule_jumps_while_a_slider_moves(visit):
    page = visit(f"{PAGE}#surface=himmelblau&method=momentum").page
    tops = """[...document.querySelectorAll('#pg :is(.pg-plane, .pg-curve, select, input)')]
      .map(e => e.getBoundingClientRect().top)"""
    before = page.evaluate(tops)
    for lr in ("0.0001", "0.3", "10"):
        put(page, "lr", lr)
        assert page.evaluate(tops) == before


def test_a_finger_moves_the_start_and_can_still_scroll(chromium, address):
    width, height = PHONE
    context = chromium.new_context(
        viewport={"width": width, "height": height}, has_touch=True
    )
    page = Visit(context.new_page()).go(address + PAGE).page
    plane = page.locator(".pg-plane")
    plane.scroll_into_view_if_needed()
    box = plane.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3)
    page.wait_for_function("Number(document.querySelector('#pg-x-number').value) > 0")
    assert plane.evaluate("e => getComputedStyle(e).touchAction") != "none"
    assert (
        page.locator(".pg-handle").evaluate("e => getComputedStyle(e).touchAction")
        == "none"
    )
    context.close()


def test_on_a_phone_the_plane_stays_in_sight(visit):
    page = visit(PAGE, PHONE).page
    slider = page.locator("#pg-clip")
    slider.scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#pg-clip').scrollIntoView({block: 'end'})")
    plane, control = page.locator(".pg-plane").bounding_box(), slider.bounding_box()
    assert plane["y"] >= 0
    assert plane["y"] + plane["height"] < control["y"] < PHONE[1]


def test_it_works_from_a_file(chromium):
    context = chromium.new_context()
    seen = Visit(context.new_page())
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("console", seen.hear)
    seen.go((SITE / PAGE).as_uri() + "#surface=saddle&method=lion")
    assert len(drawn(seen.page)) == 1
    assert seen.page.locator("#pg-method").input_value() == "lion"
    assert seen.complaints == []
    context.close()


def test_without_javascript_the_rules_remain(chromium, address):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + PAGE)
    assert "needs JavaScript" in page.locator("article noscript").inner_text()
    assert not page.locator("#pg-method").is_visible()
    assert not page.locator(".pg-plane").is_visible()
    assert all(rule.is_visible() for rule in page.locator(".pg-rule").all())
    context.close()


def test_only_this_page_loads_the_script():
    loading = [
        path.name for path in SITE.rglob("*.html") if "playground.js" in path.read_text()
    ]
    assert loading == ["playground.html"]
