// @ts-check
/** What the page says, in English and in Japanese. */

const en = {
  title: "Agent chat",
  ask: "Ask something",
  askHint: "Enter sends, Shift+Enter breaks the line, Escape stops",
  send: "Send",
  stop: "Stop",
  newChat: "New chat",
  wire: "Wire",
  toEnd: "To the end",
  transcript: "Conversation",
  welcome: "What would you like to know?",
  lead: "Each step of the agent appears here as it happens.",
  tryDocs: "How do I use my own graph?",
  tryCalculate: "What is (17 + 25) * 3 / 7?",
  tryTime: "What time is it in Tokyo?",
  tryWait: "Wait 8 seconds, then tell me",
  demo: "This is the built-in demo model: no key, no network. For a real one set OPENAI_API_KEY or OPENAI_BASE_URL and start the server again.",
  demoShort: "demo model",
  you: "You",
  agent: "Agent",
  waiting: "Sending…",
  reasoning: "Reasoning",
  input: "Input",
  result: "Result",
  progress: "Progress",
  running: "running",
  ok: "done",
  error: "failed",
  cancelled: "stopped",
  interrupted: "waiting",
  copy: "Copy",
  copied: "Copied",
  edit: "Edit",
  retry: "Retry",
  approve: "Approve",
  reject: "Reject",
  respond: "Answer for it",
  answer: "Answer",
  words: "Your answer",
  why: "Words for the agent (optional)",
  noObject: "This is no JSON object.",
  question: "The agent asks you",
  answered: "Answered",
  connecting: "Connecting",
  live: "Live",
  reconnecting: "Reconnecting",
  offline: "Offline",
  ended: "Ready",
  secondsUnit: "s",
  reasonCancelled: "Stopped.",
  reasonInterrupted: "Paused.",
  firstToken: "first token",
  total: "in all",
  tokens: "tokens",
  failed: "Something went wrong on this page.",
  unreachable: "The server cannot be reached.",
  ref: "reference",
  tokenAsk: "This server wants an access token.",
  token: "Access token",
  tokenSave: "Use it",
  tokenRefused: "The server refused that token.",
  wireTitle: "The wire",
  wireLead: "Every frame as it came.",
  timeline: "When the frames came",
  cut: "Cut connection",
  download: "Download",
  connection: "connection",
  lost: "connection lost",
  after: "after event",
  heartbeat: "heartbeat",
  text: "text",
  tool: "tool",
  frames: "frames",
  earlier: "earlier frames are in the download",
  held: "Something on the way held frames back for {} s: a proxy that buffers?",
};

/** @type {typeof en} */
const ja = {
  title: "エージェントチャット",
  ask: "質問を入力",
  askHint: "Enter で送信、Shift+Enter で改行、Esc で停止",
  send: "送信",
  stop: "停止",
  newChat: "新しい会話",
  wire: "通信",
  toEnd: "末尾へ",
  transcript: "会話",
  welcome: "何を調べましょうか",
  lead: "エージェントの動きが、起きたそばからここに表示されます。",
  tryDocs: "AGENT の使い方は？",
  tryCalculate: "(17 + 25) * 3 / 7 を計算して",
  tryTime: "東京はいま何時？",
  tryWait: "8秒待ってから教えて",
  demo: "内蔵のデモモデルで動いています（キーもネットワークも不要）。本物のモデルを使うには OPENAI_API_KEY か OPENAI_BASE_URL を設定してサーバーを起動し直してください。",
  demoShort: "デモモデル",
  you: "あなた",
  agent: "エージェント",
  waiting: "送信中…",
  reasoning: "推論",
  input: "入力",
  result: "結果",
  progress: "経過",
  running: "実行中",
  ok: "完了",
  error: "失敗",
  cancelled: "停止",
  interrupted: "回答待ち",
  copy: "コピー",
  copied: "コピーしました",
  edit: "編集",
  retry: "もう一度",
  approve: "承認",
  reject: "却下",
  respond: "代わりに答える",
  answer: "回答する",
  words: "回答",
  why: "エージェントへのひとこと（任意）",
  noObject: "JSON オブジェクトではありません。",
  question: "エージェントからの質問",
  answered: "回答しました",
  connecting: "接続中",
  live: "受信中",
  reconnecting: "再接続中",
  offline: "オフライン",
  ended: "待機中",
  secondsUnit: "秒",
  reasonCancelled: "停止しました。",
  reasonInterrupted: "一時停止中です。",
  firstToken: "最初の文字まで",
  total: "全体",
  tokens: "トークン",
  failed: "このページで問題が起きました。",
  unreachable: "サーバーに接続できません。",
  ref: "参照番号",
  tokenAsk: "このサーバーにはアクセストークンが必要です。",
  token: "アクセストークン",
  tokenSave: "使う",
  tokenRefused: "サーバーはそのトークンを拒否しました。",
  wireTitle: "通信の中身",
  wireLead: "届いたフレームをそのまま並べます。",
  timeline: "フレームが届いた時刻",
  cut: "接続を切る",
  download: "保存",
  connection: "接続",
  lost: "切断",
  after: "再開位置",
  heartbeat: "ハートビート",
  text: "本文",
  tool: "ツール",
  frames: "フレーム",
  earlier: "これより前は保存ファイルにあります",
  held: "フレームが途中で {} 秒止められていました。プロキシがバッファしていませんか？",
};

export const language = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";

/** The words of the browser's language. */
export const words = language === "ja" ? ja : en;

/**
 * What is said of a failure by its code, where the server's own words, which are English, would not do.
 *
 * @type {Record<string, string>}
 */
export const failures =
  language === "ja"
    ? {
        timeout: "時間内に終わりませんでした。",
        model_auth: "モデルの提供元がキーを拒否しました。",
        model_rate_limit: "モデルの提供元が混み合っています。しばらくしてからもう一度お試しください。",
        model_unreachable: "モデルに接続できません。",
        model_error: "モデルの回答が失敗しました。",
        agent_error: "エージェントでエラーが起きました。",
        too_large: "上限の大きさを超えました。",
        shutdown: "サーバーが停止します。しばらくしてからもう一度お試しください。",
        draining: "サーバーが停止します。しばらくしてからもう一度お試しください。",
        too_many_runs: "サーバーが混み合っています。しばらくしてからもう一度お試しください。",
        thread_busy: "この会話では別の実行が続いています。",
        nothing_to_resume: "サーバーはこの質問をもう待っていません。",
        unavailable: "サーバーの保存先に接続できません。しばらくしてからもう一度お試しください。",
        internal: "サーバーでエラーが起きました。",
        invalid_request: "このメッセージは送れません。長すぎないか確認してください（32,000 文字まで）。",
        unauthorized: "アクセストークンが必要です。",
        origin_not_allowed: "このページからサーバーを使うことは許可されていません。",
        unreachable: "サーバーに接続できません。",
        connection_lost: "接続が切れ、復旧しませんでした。",
        unknown_run: "サーバーはこの実行をもう保持していません。再起動された可能性があります。",
      }
    : {
        connection_lost: "The connection was lost and did not come back.",
        nothing_to_resume: "The server no longer waits for this answer.",
        unknown_run: "The server no longer knows this run; it may have been restarted.",
      };

/**
 * Puts words where the HTML asks for them: `data-words` names an element's text, `data-label` its
 * accessible name.
 *
 * @param {Document} page
 */
export function translate(page) {
  const table = /** @type {Record<string, string>} */ (words);
  page.documentElement.lang = language;
  page.title = words.title;
  for (const el of page.querySelectorAll("[data-words]"))
    el.textContent = table[el.getAttribute("data-words") ?? ""];
  for (const el of page.querySelectorAll("[data-label]"))
    el.setAttribute("aria-label", table[el.getAttribute("data-label") ?? ""]);
}
