/** The types that the modules of the page share or keep. Only an editor and the type check read this file. */

import type { Done, FollowOptions, ToolStatus } from "./stream.js";
import type { Inline } from "./inline.js";
import type { Highlighter } from "./code.js";
import type { Markdown } from "./markdown.js";
import type { Turn } from "./turn.js";

// main.js

/** The run that is followed. */
export interface Running {
  turn: Turn;
  runId: string | null;
  reading: AbortController;
  stopping: boolean;
  /** Whether it waits for its next attempt. */
  waiting: boolean;
  cut: () => void;
}

/** How a run is begun. */
export interface Begin {
  call: (options: FollowOptions) => Promise<Done | null>;
  /** Whether the run answers an interrupt of the turn. */
  resumes?: boolean;
  /** The run, if it is joined. */
  runId?: string;
  /** Puts back what the page showed, if no run began. */
  refused?: () => void;
}

// threads.js

/** A conversation in the list. */
export interface Entry {
  id: string;
  title: string;
  atMs: number;
}

// turn.js

/** What the buttons of a turn want. */
export interface Actions {
  /** Asks a turn's question again, or another in its place. */
  again: (turn: Turn, text?: string) => void;
  answer: (turn: Turn, answer: unknown) => void;
  /** The question that the composer answers is another one. */
  questionChanged: () => void;
  /** The notes of a turn have changed. */
  keep: () => void;
  /** Whether a run goes on, so that nothing can be asked or answered. */
  busy: () => boolean;
  isLast: (turn: Turn) => boolean;
}

/** What the server does not keep of a turn, and this browser does. */
export interface Notes {
  timings?: Done["timings"];
  /** Why the model ended its answer. */
  finish?: string;
  /** How long the model reasoned, by message. */
  reasonedMs?: Record<string, number>;
  /** Where in the turn something was answered: for each step what was decided, and what it was about. */
  answers?: { at: number; lines: [string, string][] }[];
}

/** A text of a turn, and how far it is drawn. */
export interface Part {
  el: HTMLElement;
  markdown: Markdown;
  text: string;
  drawn: number;
  /** Whether it was read from the thread. */
  old: boolean;
}

export interface Reasoning extends Part {
  summary: HTMLElement;
  /** 0 if nobody knows when it began. */
  startMs: number;
}

/** `lost`: nobody knows how the call ended. */
export type CardState = "running" | ToolStatus | "lost";

// questions.js

export interface Host {
  /** All is answered: the answers by the ids of the interrupts, and the lines that stay. */
  complete: (answer: unknown, lines: [string, string][]) => void;
  /** Another step is to be answered now. */
  changed: () => void;
  busy: () => boolean;
}

export type Kind = "approve" | "edit" | "reject" | "respond" | "answer";

/** One thing to decide. */
export interface Step {
  /** The id of its interrupt. */
  id: string;
  /** The tool that is reviewed, or "". */
  tool: string;
  title: string;
  about: string;
  details: unknown;
  kinds: Kind[];
  given?: unknown;
  /** What the person decided, in words. */
  summary?: string;
}

/** How the composer answers; `submit` is null if a button has to be pressed. */
export interface Composer {
  placeholder: string;
  send: string;
  hint: string;
  submit: ((text: string) => void) | null;
}

// wire.js

/** One frame, or a run of deltas of one message. */
export interface Row {
  name: string;
  /** The ids of its first and its last frame. */
  first: string;
  last: string;
  count: number;
  /** In bytes. */
  size: number;
  /** When its first frame came; null if nobody knows. */
  ms: number | null;
  note: string;
  raw: string[];
  el: HTMLElement | null;
}

/** A cut: after which event, what followed (null: nothing yet, -1: nothing any more), and what was wrong. */
export interface Break {
  after: number;
  next: number | null;
  lost: number;
  doubled: number;
}

// markdown.js and inline.js

export interface Container {
  type: "root" | "quote" | "list" | "item";
  el: Element;
  indent: number;
  width: number;
  mark: string;
}

export interface TextLeaf {
  type: "text";
  el: Element;
  inline: Inline;
  source: string | null;
}

export interface CodeLeaf {
  type: "code";
  el: Element;
  fence: string;
  indent: number;
  lines: number;
  highlighter: Highlighter | null;
  /** The line that arrives, and how it is drawn until it is whole. */
  line: string;
  plain: Node[];
}

export interface MathLeaf {
  type: "math";
  el: Element;
  end: string;
}

export interface TableLeaf {
  type: "table";
  el: Element;
  aligns: string[];
}

export type Leaf = TextLeaf | CodeLeaf | MathLeaf | TableLeaf;

/** A piece of a paragraph; `open`: later text may still undo it. */
export interface Span {
  end: number;
  node: Node;
  open?: boolean;
}

// code.js

/** How the languages of a family mark their parts. */
export interface Family {
  comment: string;
  opens?: string;
  closes?: Record<string, string>;
  words: Set<string>;
}

/** Plain, comment, string, number, keyword, call. */
export type Mark = "" | "c" | "s" | "n" | "k" | "f";
