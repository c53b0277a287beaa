"""The page's looks: one screen at 1280 pixels, one column on a telephone, light or dark."""

CSS = """
:root { --ink: #1b1f24; --soft: #4d5763; --paper: #f5f6f8; --card: #fff; --edge: #c9ced6; --model: #0b57d0; --served: #b3400a;
  --reference: #0a6b4f; --bad: #b3261e; --good: #0a6b4f; --focus: #0b57d0; }
body.body--dark { --ink: #e6e9ee; --soft: #a9b2bf; --paper: #111418; --card: #1a1f26; --edge: #39424e; --model: #8ab4ff;
  --served: #ffab70; --reference: #66d0a8; --bad: #ff8a80; --good: #66d0a8; --focus: #8ab4ff; }
body { background: var(--paper); color: var(--ink); font: 14px/1.4 system-ui, sans-serif; }
.nicegui-content { display: block; width: 100%; box-sizing: border-box; padding: 8px 12px; max-width: 1600px; margin: 0 auto; }
header, .panels { width: 100%; }
header { display: flex; justify-content: space-between; align-items: center; flex-wrap: wrap; gap: 8px; }
h1 { font-size: 20px; font-weight: 700; line-height: 1.6; margin: 0; } h1 small { font-weight: 400; color: var(--soft); }
h2 { font-size: 15px; font-weight: 700; line-height: 1.4; margin: 0 0 4px; }
p { margin: 0 0 6px; } ul, ol { margin: 0; padding-left: 18px; }
.panels { display: grid; grid-template-columns: minmax(0, 1fr); gap: 8px; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 6px; padding: 8px 10px; min-width: 0; }
@media (min-width: 900px) {
  .panels { grid-template: auto auto auto 1fr / repeat(12, minmax(0, 1fr)); }
  .parts { grid-area: 1 / 1 / auto / span 12; }
  .right { grid-area: 2 / 1 / span 2 / span 6; } .old { grid-area: 2 / 7 / auto / span 3; }
  .fast { grid-area: 2 / 10 / auto / span 3; } .drifts { grid-area: 3 / 7 / span 2 / span 6; }
  .versions { grid-area: 4 / 1 / auto / span 6; } .letters { grid-area: 5 / 1 / auto / span 6; }
  .slate { grid-area: 5 / 7 / auto / span 6; } .slate:has(fieldset) { grid-area: 6 / 1 / auto / span 12; }
}
.processes { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 4px 20px; }
.state { font-weight: 700; } .up .state { color: var(--good); } .waits .state, .down .state, .trouble { color: var(--bad); }
.down { flex-basis: 100%; }
.big { font-size: 22px; font-weight: 700; }
.alarms .raised b { color: var(--bad); } .since { color: var(--soft); white-space: nowrap; } .over { color: var(--soft); }
.scroll { overflow-x: auto; max-width: 100%; } .versions .scroll { max-height: 180px; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; } th, td { padding: 1px 10px 1px 0; white-space: nowrap; }
td:last-child { width: 99%; }
td button { font: inherit; color: var(--model); background: none; border: 0; padding: 0; cursor: pointer;
  text-decoration: underline; }
.mark { border: 1px solid var(--edge); border-radius: 8px; padding: 0 6px; margin-right: 4px; }
.chart { margin: 0 0 6px; } figcaption .told { display: block; color: var(--soft); }
.key { margin-right: 10px; white-space: nowrap; }
.key i { display: inline-block; width: 18px; border-top: 2px solid; margin-right: 4px; vertical-align: middle; }
i.model { border-color: var(--model); } i.served { border-color: var(--served); border-top-style: dashed; }
i.reference { border-color: var(--reference); border-top-style: dotted; }
.plot { position: relative; height: 72px; padding-left: 44px; }
.plot svg { width: 100%; height: 100%; display: block; border: 1px solid var(--edge); }
.plot path { fill: none; stroke-width: 2; stroke-linecap: round; vector-effect: non-scaling-stroke; }
path.model { stroke: var(--model); } path.served { stroke: var(--served); stroke-dasharray: 6 4; }
path.reference { stroke: var(--reference); stroke-dasharray: 1 5; }
path.level { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.plot rect { fill: transparent; } .plot rect:hover { fill: var(--soft); fill-opacity: .25; }
.plot span { position: absolute; left: 0; width: 40px; text-align: right; font-size: 11px; line-height: 1;
  color: var(--soft); pointer-events: none; }
.plot .top { top: 2px; } .plot .bottom { bottom: 2px; }
.places { padding-left: 44px; display: flex; justify-content: space-between; font-size: 11px; color: var(--soft); }
.fast .plot { height: 48px; }
i.bar { display: inline-block; height: 10px; background: var(--model); vertical-align: middle; }
.sides { display: block; position: relative; height: 12px; min-width: 60px;
  background: linear-gradient(var(--edge), var(--edge)) center / 1px 100% no-repeat; }
.sides i { position: absolute; top: 1px; height: 10px; } .sides .plus { left: 50%; background: var(--model); }
.sides .minus { right: 50%; background: var(--served); }
.bar-of-buttons { display: flex; flex-wrap: wrap; gap: 8px; align-items: end; margin: 6px 0; }
.explained { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 370px), 1fr)); gap: 4px 20px; }
.explained > div { min-width: 0; }
.answer-line:empty { display: none; }
.answer-line { font-weight: 600; overflow-wrap: anywhere; }
.letters pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 160px; overflow-y: auto; margin: 2px 0 6px;
  font-size: 12px; background: var(--paper); padding: 4px; }
.letters li { overflow-wrap: anywhere; }
fieldset { border: 1px solid var(--edge); border-radius: 6px; display: grid; gap: 4px 10px; margin: 0 0 6px;
  padding: 2px 8px 6px; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); }
legend { color: var(--soft); }
code { overflow-wrap: anywhere; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.nicegui-content :focus-visible, .q-dialog :focus-visible, .nicegui-skip-link:focus-visible {
  outline: 3px solid var(--focus); outline-offset: 1px; }
.q-btn:focus-visible { box-shadow: 0 0 0 2px var(--card), 0 0 0 5px var(--focus); z-index: 1; }
.q-field--focused { outline: 3px solid var(--focus); outline-offset: 1px; }
"""
