/**
 * Keys of the page: what each does, wherever the focus is but in a field.
 */

/**
 * @typedef {Record<string, (event: KeyboardEvent) => unknown>} Keys by `KeyboardEvent.key`
 */

/**
 * @param {Keys} keys
 * @param {() => boolean} active whether keys mean anything now
 */
export function listen(keys, active) {
  document.addEventListener('keydown', (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (!active() || !(target instanceof HTMLElement)) return;
    if (target.matches('input:not([type=range]), select, textarea')) return;
    if (target.matches('input[type=range]') && /^(Arrow|Home|End)/.test(key)) return;
    if (key === ' ' && target.matches('button, summary')) return;
    const act = keys[key] ?? keys[key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act(event);
  });
}
