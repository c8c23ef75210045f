"""Prompts for what the benchmark sets lack: everyday requests of each field, law above all.

Each field is a list of topics that templates turn into prompts; one topic makes one group, so that an evaluation can
leave whole topics out. Written for this project.
"""

TEMPLATES = {
    "legal": ["What are my rights regarding {}?", "Can I be sued over {}?", "Explain the law on {} in plain words.",
              "A client asks about {}. Which statute applies and what is the court likely to hold?",
              "Review this paragraph about {} and list the risks for both parties."],
    "finance": ["How does {} work?", "Should I worry about {} as a small investor?", "Explain {} to a beginner.",
                "Build a table that compares the costs of {} over ten years.", "What drives {} this quarter?"],
    "medical": ["What are the symptoms of {}?", "How is {} treated?", "My father was told that he has {}. Is it serious?",
                "A 54-year-old presents with {}. What is the most likely diagnosis and the next step?",
                "Can I take ibuprofen with {}?"],
    "code": ["Write {}.", "Help me with {}, it fails with an error that I do not understand.", "What is the best way to do {}?",
             "Refactor {} and add unit tests.", "Explain step by step how {} works."],
    "math": ["Solve {}.", "How do I compute {}?", "Prove a statement on {}.", "Give me ten exercises on {} with answers.",
             "Find the value of {} and show every step."],
    "general": ["Tell me about {}.", "Write a short text on {}.", "I need help with {}.", "What do you think of {}?",
                "Give me five ideas for {}."],
}

TOPICS = {
    "legal": """a contract|a court hearing|a lawyer and a judge|a lease that the landlord ended early|defamation on social media|child custody after a divorce
        an unpaid invoice and a breach of contract|a non-compete clause in my employment contract|wrongful dismissal
        a speeding ticket in another state|copyright of photos taken by a contractor|a will without witnesses
        negligence of a hospital|hearsay evidence at trial|search and seizure without a warrant|the first amendment
        adverse possession of a strip of land|a power of attorney|the burden of proof in criminal cases
        product liability for a defective ladder|the GDPR and consent|a trademark dispute over a name|asylum and residence
        a restraining order|the statute of limitations for fraud|a class action settlement|an easement over my driveway
        murder and manslaughter|the validity of an oral contract|arbitration clauses|a tenant's deposit
        insider trading prosecutions|jury selection|extradition treaties|the duty of care of a shop owner
        consideration and promissory estoppel|the commerce clause|bail for a first offence|a patent licence
        consumer rights for a faulty phone|the appeal of a judgment|inheritance between siblings|data protection fines""",
    "finance": """an index fund|a fixed-rate mortgage|compound interest on a savings account|inflation and interest rates
        a company's balance sheet|depreciation of equipment|capital gains tax|a stock split|government bonds|short selling
        option pricing|the price of crude oil|a currency hedge|credit card debt|a pension plan|value-added tax
        venture capital rounds|the yield curve|discounted cash flow|working capital|an initial public offering
        dividend policy|a leveraged buyout|the money supply|supply and demand in the housing market|payroll taxes
        an exchange-traded fund|foreign exchange reserves|an annuity|the cost of goods sold|cryptocurrency volatility
        a household budget|break-even analysis|monetary policy|an audit of accounts receivable|a credit rating""",
    "medical": """type 2 diabetes|high blood pressure|a migraine with aura|chest pain and shortness of breath|asthma
        a broken wrist|depression and sleep problems|pneumonia|an iron deficiency|a swollen knee|hay fever|a stroke
        an irregular heartbeat|chickenpox|a urinary tract infection|kidney stones|a thyroid nodule|back pain|eczema
        a concussion|gestational diabetes|hepatitis B|anaemia|a peptic ulcer|sepsis|tuberculosis|osteoporosis|gout
        a fever in an infant|vaccination against measles|side effects of statins|an overdose of paracetamol|epilepsy
        a skin rash after antibiotics|dementia|an appendectomy|breast cancer screening|blood in the stool""",
    "code": """a Python function that reads a CSV file|a SQL query with a left join|a regular expression for e-mail addresses
        a React component with a form|a bash script that rotates logs|a Dockerfile for a Node service|unit tests in Rust
        a binary search tree in C++|an async HTTP client|a memory leak in a Go service|a git rebase with conflicts
        a GraphQL resolver|a Kubernetes deployment|parsing JSON in Java|a linked list reversal|a REST API with FastAPI
        a TypeScript type for a nested object|a race condition between two threads|a recursive Fibonacci function
        a CSS grid layout|a webhook endpoint|a pandas dataframe merge|a hash map with open addressing|a LaTeX macro
        quicksort in JavaScript|a makefile for a C project|a Terraform module|a dynamic programming solution for knapsack
        an SSH tunnel|a database migration|an iOS view in Swift|a class that implements an LRU cache|a null pointer exception
        a websocket server|a compiler warning about lifetimes|a cron job|an nginx reverse proxy|a linter configuration""",
    "math": """x^2 - 5x + 6 = 0|the integral of sin(x) cos(x)|the derivative of x ln x|the sum of the first 100 odd numbers
        the probability of two sixes in four throws|a system of three linear equations|the eigenvalues of a 2x2 matrix
        the area of a circle inscribed in a triangle|the limit of (1 + 1/n)^n|prime numbers below 200|modular arithmetic
        the volume of a cone|a geometric series|the number of ways to seat eight people|the square root of 2
        log base 3 of 81|complex numbers|the binomial theorem|the greatest common divisor of 84 and 126|a quadratic inequality
        percentages and fractions|the average speed of a train|the standard deviation of a sample|Fermat's little theorem
        the distance between two points|trigonometric identities|a differential equation y' = 2y|permutations of a word
        the age of two brothers whose sum is 40|apples that three children share|17 times 23|a normal distribution
        the hypotenuse of a right triangle|group homomorphisms|a rate problem with two pipes|continuity of a function""",
    "general": """a birthday party|the history of Rome|a fox and a crow|my cat|a holiday in Norway|how to bake bread|the moon
        an e-mail to my neighbour|a poem on autumn|the novel Moby-Dick|learning to play the guitar|a job interview|football
        the French Revolution|a name for a bakery|the weather in Lisbon|volcanoes|how birds find their way|a film for tonight
        a letter of thanks to a teacher|gardening on a balcony|the philosophy of Kant|a dragon who is afraid of fire|tea
        being kinder|a summary of this article|a translation into Spanish|the meaning of a proverb|photosynthesis|ice hockey
        moving to a new city|a speech for a wedding|dinosaurs|a recipe with lentils|black holes|train travel in Japan
        hi there|good morning|who you are|a joke about penguins|how to focus while studying|the psychology of habits
        a bridge that engineers would admire|a plot for a crime story|the grammar of this sentence|my weekly plan""",
}


def prompts():
    """Yields (field, topic, prompt)."""
    for field, text in TOPICS.items():
        for topic in (part.strip() for line in text.splitlines() for part in line.split("|")):
            for template in TEMPLATES[field]:
                yield field, topic, template.format(topic)
