//! What the router needs to know of a request, borrowed from the body that the API parsed.

use std::borrow::Cow;
use std::time::Duration;

use crate::choice::ModelChoice;
use crate::class::{DataClass, Mode, Preference};
use crate::registry::Craft;
use crate::units::{MicroUsd, Tokens};

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageRole {
    /// Instructions of the application.
    System,
    /// The person or program that asks.
    User,
    /// An earlier answer of a model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

/// One message of a conversation, text only.
#[derive(Debug, Clone)]
pub struct Message<'a> {
    /// Who wrote it.
    pub role: MessageRole,
    /// Its text; the parts of a multi-part message joined by newlines.
    pub text: Cow<'a, str>,
}

/// What a request asks of a model beyond text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Tools are offered to the model.
    pub tools: bool,
    /// The answer must follow a JSON schema.
    pub schema: bool,
    /// A message holds an image.
    pub vision: bool,
    /// A message of a chat holds sound.
    pub audio: bool,
    /// Vectors are wanted, not text.
    pub embeddings: bool,
    /// The caller wants log probabilities.
    pub logprobs: bool,
    /// What is said in a recording is to be written down.
    pub transcription: bool,
    /// A text is to be read aloud.
    pub speech: bool,
}

impl Needs {
    /// Returns what is to be made.
    pub fn craft(&self) -> Craft {
        if self.embeddings {
            Craft::Vectors
        } else if self.transcription {
            Craft::Transcripts
        } else if self.speech {
            Craft::Speech
        } else {
            Craft::Text
        }
    }
}

/// One request, as far as routing cares.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The conversation, oldest first; for completions and embeddings one user message per input.
    pub messages: Vec<Message<'a>>,
    /// Longest answer that the caller asked for.
    pub max_output: Option<Tokens>,
    /// What it asks of a model.
    pub needs: Needs,
    /// The answer is to be streamed.
    pub stream: bool,
    /// Which model, or that we may choose.
    pub choice: ModelChoice,
    /// Where it may run.
    pub mode: Mode,
    /// What matters most when we choose; a preference inside `choice` wins.
    pub preference: Preference,
    /// How far it may travel.
    pub data_class: DataClass,
    /// Routers that forwarded it before this one; 0 where the client connected.
    pub hop: u32,
    /// Longest prompt for devices while the mode leaves the place to us: longer ones go to the cloud where that is
    /// permitted. `None` = only the contexts of the models bound it.
    pub max_local_tokens: Option<Tokens>,
    /// How long the caller says that it waits for the whole answer.
    pub time_limit: Option<Duration>,
    /// What is left of the money that the caller's key may spend at providers; `None` = no bound of its own.
    pub budget_left: Option<MicroUsd>,
    /// Hash of what all turns of its conversation share; hosts that served it may have it in their cache.
    pub session: Option<u64>,
}

impl<'a> Request<'a> {
    /// Makes the request of a user who asks one question and leaves everything else to us.
    pub fn of_text(text: &'a str) -> Self {
        Self {
            messages: vec![Message { role: MessageRole::User, text: text.into() }],
            max_output: None,
            needs: Needs::default(),
            stream: false,
            choice: ModelChoice::Auto(Preference::Balanced),
            mode: Mode::Auto,
            preference: Preference::Balanced,
            data_class: DataClass::Internal,
            hop: 0,
            max_local_tokens: None,
            time_limit: None,
            budget_left: None,
            session: None,
        }
    }

    /// Returns the same request with its text borrowed from this one.
    pub fn borrowed(&self) -> Request<'_> {
        Request {
            messages: self
                .messages
                .iter()
                .map(|message| Message { role: message.role, text: Cow::Borrowed(&*message.text) })
                .collect(),
            max_output: self.max_output,
            needs: self.needs,
            stream: self.stream,
            choice: self.choice.clone(),
            mode: self.mode,
            preference: self.preference,
            data_class: self.data_class,
            hop: self.hop,
            max_local_tokens: self.max_local_tokens,
            time_limit: self.time_limit,
            budget_left: self.budget_left,
            session: self.session,
        }
    }

    /// Returns the preference that counts: the one of the model's name (`auto:fast`) before the one of the body.
    pub fn effective_preference(&self) -> Preference {
        match self.choice {
            ModelChoice::Auto(preference) if preference != Preference::Balanced => preference,
            _ => self.preference,
        }
    }

    /// Returns where the request may run: `auto:local` means local, whatever the body says.
    pub fn effective_mode(&self) -> Mode {
        match self.choice {
            ModelChoice::AutoLocal => Mode::Local,
            ModelChoice::Auto(_)
            | ModelChoice::Named(_)
            | ModelChoice::OnDevice { .. }
            | ModelChoice::Provider { .. } => self.mode,
        }
    }
}
