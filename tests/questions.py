"""Sixty questions of a newcomer to the built-in agent, and what has to come first in the answer.

A row is a question, then the expected place, then words that the answer has to show, if any.
The place is a key of HEADINGS, several keys with / between them, or, in parentheses, the key of a
line in ``builtin.demo.LINES`` or the name of a tool. When README.md gets other headings, edit
HEADINGS, and the words if a fact has moved.
"""

HEADINGS = {
    "intro": "Streaming a LangGraph agent with aiohttp",
    "start": "Start",
    "curl": "Watch the stream",
    "resume": "Resume and stop",
    "model": "Your own model",
    "graph": "Your own graph",
    "javascript": "Your own page",
    "protocol": "Requests and events",
    "settings": "Settings",
    "container": "Container, proxy, several servers",
    "code": "How it works",
    "not": "What it does not do",
    "tests": "Test",
    "more": "Licence and further documents",
}

TABLE = """
How do I change the port?               | settings | `PORT`
heartbeat                               | settings | `HEARTBEAT_S`
MAX_RUNS                                | settings | `MAX_RUNS`
What is RUN_TTL_S?                      | settings | `RUN_TTL_S`
How do I set the timeout of a run?      | settings | `RUN_TIMEOUT_S`
How do I set an API token?              | settings | `API_TOKEN`
How do I allow CORS for my frontend?    | settings | `CORS_ORIGINS`
What is the log level?                  | settings | `LOG_LEVEL`
Which settings are there?               | settings |
How do I search my own docs?            | settings | `DOCS_DIR`
How do I run the tests?                 | tests | .venv/bin/pytest
test                                    | tests | .venv/bin/pytest
How do I start the server?              | start | python app.py
How do I install this?                  | start | pip install
How do I use it with curl?              | curl | curl -N
How do I use my own model?              | model | OPENAI_MODEL
Does it work with Ollama?               | model | 11434
How do I connect vLLM?                  | model | vLLM
How do I use my own graph?              | graph | AGENT
interrupt                               | graph/protocol | interrupt
How do I use it from React?             | javascript | useChatStream
Which events does it send?              | protocol | `text_delta`
tool_progress                           | protocol/graph | `tool_progress`
What does thread_busy mean?             | protocol | `thread_busy`
How do I stop a run?                    | resume/protocol | /cancel
How do I resume after a disconnect?     | resume/protocol | Last-Event-ID
How do I deploy it with Docker?         | container | docker build
nginx                                   | container | deploy.md
Does it work behind a proxy?            | container/settings |
Can I run several servers?              | settings/container | REDIS_URL
How does it work?                       | code | append-only log
Where is the code of the event log?     | code | events.py
What does it not do?                    | not | no accounts
What is the license?                    | more | MIT
Where are the measurements?             | more/code |
What is the wire?                       | protocol/intro/code |
What is this?                           | (about) | port
who are you?                            | (about) | port
hello                                   | (about) | port
thanks!                                 | (thanks) |
double that                             | (no_result) | 15% of 80
write a python function that reverses a list | (cannot) | OPENAI_BASE_URL
What is the weather in Paris?           | (none) |
ポートの設定方法は?                     | settings | `PORT`
PORT を変えるには？                     | settings | `PORT`
ハートビートの間隔は?                   | settings | `HEARTBEAT_S`
タイムアウトを変えたい                  | settings | `RUN_TIMEOUT_S`
テストの実行方法を教えて                | tests | .venv/bin/pytest
サーバーを起動するには?                 | start | python app.py
実行を止めるには?                       | resume/protocol | /cancel
途中から再開できますか?                 | resume/protocol | resume
自分のモデルを使いたい                  | model | OPENAI_MODEL
AGENT の使い方は？                      | settings/graph | AGENT
Dockerで動かすには?                     | container | docker build
プロキシの後ろに置くには?               | container/settings |
イベントの種類は?                       | protocol | `text_delta`
ライセンスは?                           | more | MIT
こんにちは                              | (about) | 2倍
それを2倍して                           | (no_result) | 80の15%
Pythonで配列を逆順にする関数を書いて    | (cannot) | OPENAI_API_KEY
"""
QUESTIONS = [[cell.strip() for cell in row.split("|")] for row in TABLE.strip().split("\n")]

# What newcomers asked later: their own words, whole sentences, and more than the question.
MORE_TABLE = """
Port 8000 is already used on my computer, how can I use another one? | settings | `PORT`
Thank you, and how do I change the port? | settings | `PORT`
How long can a run take?                | settings | `RUN_TIMEOUT_S`
How long is a run kept after it ends?   | settings | `RUN_TTL_S`
How many runs can there be at once?     | settings | `MAX_RUNS`
Why do I get a CORS error from my Vue app? | settings | `CORS_ORIGINS`
How do I see the logs?                  | settings | `LOG_LEVEL`
Where are conversations stored?         | settings/not/graph |
Where is the chat history saved?        | settings/not/graph |
My wifi dropped in the middle of an answer. Does the answer continue? | resume/protocol |
What happens if I close the tab?        | resume/settings/code/protocol |
What happens if my connection drops?    | resume/settings/protocol |
What licence is it under, can I use it in my company? | more | MIT
Is it free?                             | more | MIT
Can I use this commercially?            | more | MIT
Can I upload a PDF?                     | not/settings | files and images
Can I send an image?                    | not/settings | files and images
I want to run three copies behind a load balancer | settings/container | REDIS_URL
My company uses a reverse proxy; will it still work? | container/settings |
Can I use Claude or Gemini instead of OpenAI? | model/settings | OPENAI
Where is the API documentation?         | protocol/more | docs/
I have a LangGraph graph already in my project. How can I plug it into this server? | graph | AGENT
How do I stop the server?               | start | Ctrl-C
How do I run it in Docker?              | container | docker
How do I run the tests in Docker?       | tests/container |
What Python version do I need?          | start | 3.11
Does it run on Windows?                 | start | PowerShell
ログを見るには?                         | settings | `LOG_LEVEL`
サーバーを止めるには?                   | start | Ctrl-C
会話は保存されますか                    | settings/not/graph |
無料ですか                              | more | MIT
画像を送れますか                        | not/settings | files and images
Hello! What is this?                    | (about) | port
hello, who are you?                     | (about) | port
What is this project?                   | (about) | port
Which tools do you have?                | (about) | `current_time`
What can you do for me?                 | (about) | port
このプロジェクトは何ですか              | (about) | 2倍
ツールは何がありますか                  | (about) | `current_time`
こんにちは、何ができますか              | (about) | 2倍
thank you very much!                    | (thanks) |
どうも                                  | (thanks) |
no                                      | (fine) |
ok, cool                                | (fine) |
continue                                | (fine) |
さようなら                              | (fine) |
How do I bake bread?                    | (none) |
list all settings                       | settings | --help
Do I need an API key?                   | settings | OPENAI_API_KEY
APIキーは必要ですか                     | settings | OPENAI_API_KEY
接続が切断されたらどうなりますか        | resume/settings/protocol |
切断されたらどうなりますか              | resume/settings/protocol |
"""
MORE = [[cell.strip() for cell in row.split("|")] for row in MORE_TABLE.strip().split("\n")]
