/**
 * Keeps the files of a static site, so that it works without the network from the second visit on.
 */

const NO_ROOM =
  'The browser has no room to keep this page for use without a network; it works as long as there ' +
  'is one.';

/** @param {(text: string) => void} say */
export async function keepOffline(say) {
  if (!('serviceWorker' in navigator)) return;
  try {
    const { installing } = await navigator.serviceWorker.register('service-worker.js');
    installing?.addEventListener('statechange', () => {
      if (installing.state === 'redundant') say(NO_ROOM);
    });
  } catch {
    say(NO_ROOM);
  }
}
