"""The school plan of the primer world, in a small line format.

    F field / sub-field
    D discipline
    C key concept = skill [param=value ...]     (a concept of the discipline)
    S subject | level | subtopic, subtopic, ... | introduction
    - session title | description | concept, concept, ...

Every key concept names one skill variant, so a question about it is unambiguous.
"""

PLAN = """
F Mathematics / Arithmetic
D Addition
C small sums = add kind=small
C adding ones = add kind=small
C adding tens = add kind=tens
C tens and ones = add kind=plain
C adding without carry = add kind=plain
C adding with carry = add kind=carry
C carry the ten = add kind=carry
C adding a small number = add kind=one
C doubles = add kind=double
C large sums = add kind=large
C three small numbers = add3 top=9
C mixed sums = add kind=any
S Small sums | beginner | ones, doubles | We add small numbers.
- First sums | Add two small numbers. | small sums, adding ones
- Double numbers | Double a number. | doubles, small sums
- Three in a row | Add three small numbers. | three small numbers, adding ones
- Count on | Add a small number to a big one. | adding a small number, small sums
- Small review | Use what we know. | doubles, three small numbers, adding a small number
S Adding tens and ones | intermediate | tens, ones, carry | We add tens and ones.
- Whole tens | Add tens like ones. | adding tens, tens and ones
- Tens then ones | First tens, then ones. | tens and ones, adding without carry, adding a small number
- The carry | Ones can make a ten. | adding with carry, carry the ten
- Carry or not | Add all kinds of numbers. | mixed sums, adding with carry, adding without carry
- Double review | Double two digits. | doubles, adding tens
S Large addition | advanced | large numbers, carry | We add large numbers.
- Over one hundred | Sums over one hundred. | large sums, adding tens
- Carry again | Use the carry. | carry the ten, large sums, mixed sums
- Long sums | Add three numbers. | three small numbers, mixed sums
- Step by step | Tens, ones, together. | tens and ones, adding with carry, large sums

D Subtraction
C small differences = sub kind=small
C taking ones = sub kind=small
C taking tens = sub kind=tens
C taking without borrow = sub kind=plain
C tens minus tens = sub kind=tens
C taking with borrow = sub kind=borrow
C break a ten = sub kind=borrow
C taking a small number = sub kind=one
C mixed differences = sub kind=any
C two digit differences = sub kind=any
S Taking away | beginner | ones, small numbers | We take small numbers away.
- First steps | Take a small number. | small differences, taking ones
- What is left | See how much is left. | taking ones, taking a small number
- From a big number | Take ones from tens. | taking a small number, small differences
- Small review | Use what we know. | small differences, taking tens, taking a small number
S Tens and borrow | intermediate | tens, borrow | We break a ten to take ones.
- Whole tens | Take tens like ones. | taking tens, tens minus tens
- No borrow | We can take the ones. | taking without borrow, taking tens
- The borrow | Break one ten. | taking with borrow, break a ten
- Borrow or not | Look at the ones first. | mixed differences, taking with borrow, taking without borrow
- Borrow review | All kinds of numbers. | break a ten, two digit differences
S Large subtraction | advanced | two digits, borrow | We take large numbers away.
- Two digits | Work with two digits. | two digit differences, taking without borrow
- Step by step | Tens, ones, together. | break a ten, mixed differences, tens minus tens
- Hard ones | Take with borrow. | taking with borrow, two digit differences
- Long review | Use all steps. | mixed differences, taking a small number, break a ten

D Multiplication
C table of 2 = mul kind=table by=2
C table of 3 = mul kind=table by=3
C table of 4 = mul kind=table by=4
C table of 5 = mul kind=table by=5
C table of 6 = mul kind=table by=6
C table of 7 = mul kind=table by=7
C table of 8 = mul kind=table by=8
C table of 9 = mul kind=table by=9
C all tables = mul kind=table
C tens times ones = mul kind=tens
C two digits times two = mul kind=two by=2
C two digits times ones = mul kind=two
C split and multiply = mul kind=two
S First tables | beginner | table of 2, table of 5 | We learn the first tables.
- Twos and fours | Count by 2 and 4. | table of 2, table of 4
- Threes | Count by 3. | table of 3, table of 2
- Fives | Count by 5. | table of 5, table of 3
- First review | The first tables again. | table of 4, table of 5, table of 3
S Hard tables | intermediate | table of 7, table of 9 | We learn the hard tables.
- Sixes | Count by 6. | table of 6, table of 3
- Sevens | Count by 7. | table of 7, table of 6
- Eights and nines | Count by 8 and 9. | table of 8, table of 9
- Table review | All tables again. | all tables, table of 7, table of 8
S Large products | advanced | tens, two digits | We multiply tens and ones.
- Times tens | Multiply whole tens. | tens times ones, all tables
- Times two | Multiply by 2. | two digits times two, tens times ones
- Split it | Tens first, then ones. | split and multiply, two digits times ones
- Product review | All kinds of products. | two digits times ones, tens times ones, all tables

F Mathematics / Numbers
D Comparing Numbers
C largest of tens = extreme kind=tens way=largest
C smallest of tens = extreme kind=tens way=smallest
C largest by ones = extreme kind=ones way=largest
C smallest by ones = extreme kind=ones way=smallest
C largest of hundreds = extreme kind=hundreds way=largest
C smallest of hundreds = extreme kind=hundreds way=smallest
C how much larger = gap kind=plain
C gap with borrow = gap kind=borrow
C gap between tens = gap kind=tens
C gap of any size = gap kind=any
S Largest and smallest | beginner | tens, ones | We find the largest number.
- Look at the tens | Compare the tens. | largest of tens, smallest of tens
- Look at the ones | The tens are the same. | largest by ones, smallest by ones
- Find the largest | The largest of all. | largest of tens, largest by ones
- Find the smallest | The smallest of all. | smallest of tens, smallest by ones
S Large numbers | intermediate | hundreds, tens | We compare hundreds.
- Hundreds first | Compare the hundreds. | largest of hundreds, smallest of hundreds
- Tens again | Compare the tens again. | largest of tens, largest of hundreds
- Small and large | Find both ends. | smallest of hundreds, smallest by ones, largest of tens
- Large review | All kinds of numbers. | largest of hundreds, largest by ones, smallest of tens
S The gap | advanced | gap, tens and ones | We find how much larger a number is.
- How far | See how far numbers are. | how much larger, gap between tens
- Gap in tens | Compare whole tens. | gap between tens, gap of any size
- Hard gaps | Break a ten for the gap. | gap with borrow, how much larger
- Gap review | All kinds of gaps. | gap of any size, gap with borrow, gap between tens

D Ordering Numbers
C order by tens = sort kind=tens way=up
C small to large = sort kind=tens way=up
C large to small = sort kind=tens way=down
C order by ones = sort kind=ones way=up
C order by hundreds = sort kind=hundreds way=up
C order three numbers down = sort kind=tens way=down size=3
C second largest = rank kind=tens rank=second_largest
C second smallest = rank kind=tens rank=second_smallest
C middle number = rank kind=tens rank=middle
C number after = neighbour way=after top=99
C number before = neighbour way=before top=99
C number between = between top=99
C after large numbers = neighbour way=after top=999
S Counting on and back | beginner | after, before | We count on and back.
- One more | The number after. | number after, number between
- One less | The number before. | number before, number between
- In the middle | Find what is between. | number between, middle number
- Large counts | Count with hundreds. | after large numbers, number before
S Putting in order | intermediate | small to large, large to small | We put numbers in order.
- Going up | From small to large. | small to large, order by tens
- Going down | From large to small. | large to small, order three numbers down
- Look at the ones | The tens are the same. | order by ones, small to large
- Order review | Up and down. | order by tens, large to small, order by ones
S Places in order | advanced | second, middle | We find places in the order.
- The middle | Find the middle number. | middle number, order by tens
- Second place | Find the second number. | second largest, second smallest
- Hundreds | Order the hundreds. | order by hundreds, large to small
- Place review | All places again. | second smallest, middle number, order by hundreds

D Number Patterns
C counting up in steps = next way=up
C counting down in steps = next way=down
C next number = next way=up
C going down = next way=down
C missing number = missing
C fill the hole = missing
C find the step = rule
C what is added = rule
C doubling = double
S Steps up and down | beginner | up, down | We count in steps.
- Steps up | Add the same each time. | counting up in steps, next number
- Steps down | Take the same each time. | counting down in steps, going down
- Up or down | Look at the step. | next number, going down
- Step review | All steps again. | counting up in steps, counting down in steps, find the step
S Missing numbers | intermediate | holes, steps | We find missing numbers.
- The hole | Find what is missing. | missing number, fill the hole
- Step and hole | First find the step. | find the step, missing number
- What is added | Find what is added. | what is added, next number
- Hole review | Fill all holes. | fill the hole, what is added, counting up in steps
S Pattern rules | advanced | steps, doubling | We find the rule of a pattern.
- Find the rule | How does it go on. | find the step, what is added
- Doubling | Each number is doubled. | doubling, next number
- Down again | Patterns that go down. | going down, counting down in steps
- Rule review | All rules again. | doubling, missing number, find the step

F Measurement / Time
D Clock Time
C half past = read kind=half
C quarter past = read kind=quarter_past
C quarter to = read kind=quarter_to
C minutes past = read kind=past
C minutes to = read kind=to
C minutes later = minutes kind=plain
C into the next hour = minutes kind=wrap
C hours later = hours
C hours earlier = earlier unit=hours
C minutes earlier = earlier unit=minutes
C how long = duration
C counting minutes = duration
S Reading the clock | beginner | half, quarter, minutes | We read the clock.
- Half hours | Read half past. | half past, quarter past
- Quarters | Read the quarters. | quarter past, quarter to
- Past the hour | Read minutes past. | minutes past, half past
- To the hour | Read minutes to. | minutes to, quarter to
S Later and earlier | intermediate | later, earlier | We find a later time.
- Minutes later | Add minutes. | minutes later, minutes past
- Hours later | Add hours. | hours later, minutes later
- Earlier | Take time away. | hours earlier, minutes earlier
- Time review | Later and earlier. | hours later, minutes earlier, minutes later
S How long | advanced | minutes, next hour | We find how long it takes.
- From start to end | Count the minutes. | how long, counting minutes
- Next hour | Go over the hour. | into the next hour, minutes later
- Long times | Hours and minutes. | hours later, into the next hour, how long
- Long review | All kinds of time. | counting minutes, hours earlier, into the next hour

D Calendar
C day after = next_in_calendar of=day way=after
C day before = next_in_calendar of=day way=before
C month after = next_in_calendar of=month way=after
C month before = next_in_calendar of=month way=before
C days later = steps_in_calendar of=day way=after
C days earlier = steps_in_calendar of=day way=before
C months later = steps_in_calendar of=month way=after
C months earlier = steps_in_calendar of=month way=before
C days in a month = month_days
C place in the week = position_in_calendar of=day
C place in the year = position_in_calendar of=month
S Days of the week | beginner | after, before | We learn the days.
- Next day | The day after. | day after, place in the week
- Day before | The day before. | day before, day after
- The week | The order of the days. | place in the week, days later
- Week review | All days again. | days later, days earlier, day before
S Months of the year | intermediate | after, before | We learn the months.
- Next month | The month after. | month after, place in the year
- Month before | The month before. | month before, month after
- The year | The order of the months. | place in the year, months later
- How many days | Short and long months. | days in a month, month before
S Counting days and months | advanced | later, earlier | We count days and months.
- Days on | Count days on. | days later, day after
- Days back | Count days back. | days earlier, place in the week
- Months on | Count months on. | months later, days in a month
- Months back | Count months back. | months earlier, month before, months later

F Measurement / Things
D Units
C length to smaller units = unit of=length way=down
C meters and centimeters = unit of=length way=down
C length to larger units = unit of=length way=up
C kilograms to grams = unit of=weight way=down
C grams to kilograms = unit of=weight way=up
C time to smaller units = unit of=time way=down
C time to larger units = unit of=time way=up
C hours and minutes = unit of=time way=down
C two units together = mixed
C mixed units = mixed
S Length | beginner | meters, centimeters | We change units of length.
- Smaller units | From large to small units. | length to smaller units, meters and centimeters
- Larger units | From small to large units. | length to larger units, length to smaller units
- Two units | Meters and more. | two units together, meters and centimeters
- Length review | All units again. | length to larger units, mixed units, meters and centimeters
S Weight | intermediate | kilograms, grams | We change units of weight.
- Grams | How many grams. | kilograms to grams, grams to kilograms
- Kilograms | How many kilograms. | grams to kilograms, length to larger units
- Weight and length | Both kinds of units. | kilograms to grams, length to smaller units
- Weight review | All units again. | grams to kilograms, kilograms to grams, mixed units
S Units of time | advanced | hours, minutes, weeks | We change units of time.
- Minutes | Hours to minutes. | hours and minutes, time to smaller units
- Weeks and years | Larger units of time. | time to larger units, time to smaller units
- Hours and more | Hours and minutes together. | mixed units, hours and minutes
- Unit review | All units again. | two units together, time to larger units, hours and minutes

D Money
C cost of two things = cost
C adding cents = cost
C getting change = change
C money left = change
C price of many = each
C cents each = each
C counting coins = coins
C same coins = coins
C how much more = dearer
C comparing prices = dearer
S Coins | beginner | coins, cents | We count coins.
- Same coins | Count coins of one kind. | same coins, counting coins
- Coins and cents | Add the cents. | counting coins, adding cents
- Money left | See how much is left. | money left, same coins
- Coin review | All coins again. | counting coins, adding cents, money left
S At the shop | intermediate | cost, change | We buy things.
- Two things | The cost of two things. | cost of two things, adding cents
- Change | Get change back. | getting change, money left
- Many things | Buy many at one price. | price of many, cents each
- Shop review | Buy and pay. | cost of two things, getting change, price of many
S Prices | advanced | prices, gap | We compare prices.
- Which costs more | Compare two prices. | how much more, comparing prices
- Price of each | Pay for each thing. | cents each, how much more
- Pay and compare | Pay, then compare. | comparing prices, cost of two things
- Price review | All prices again. | comparing prices, cents each, getting change

F Language / Words
D Alphabet
C letter after = letter way=after
C letter before = letter way=before
C next letter = letter way=after
C letters later = far_letter way=after
C letters earlier = far_letter way=before
C letter number = letter_number
C number of a letter = letter_number
C find the letter = numbered_letter
C letter at a place = numbered_letter
C letter between = letter_between
S Letter order | beginner | after, before | We learn the order of letters.
- Next letter | The letter after. | letter after, next letter
- Letter before | The letter before. | letter before, letter between
- In the middle | Find what is between. | letter between, next letter
- Letter review | All letters again. | letter after, letter before, letter number
S Letter numbers | intermediate | numbers, places | Each letter has a number.
- Letter to number | Find the number. | letter number, number of a letter
- Number to letter | Find the letter. | find the letter, letter at a place
- Both ways | From letter to number and back. | number of a letter, find the letter
- Place review | All places again. | letter at a place, letter between, letter number
S Counting letters | advanced | later, earlier | We count letters on and back.
- Letters on | Count letters on. | letters later, letter after
- Letters back | Count letters back. | letters earlier, letter before
- On and back | Count both ways. | letters later, letters earlier
- Count review | All kinds of letters. | letters earlier, find the letter, next letter

D Plurals
C plural with s = plural kind=s
C plural with es = plural kind=es
C from y to ies = plural kind=ies
C from f to ves = plural kind=ves
C odd plurals = plural kind=odd
C more than one = plural kind=any
C all plurals = plural kind=any
C back to one = singular
C singular of easy words = singular kind=s
C singular of odd words = singular kind=odd
S Easy plurals | beginner | s, es | We write easy plurals.
- Add s | Put s at the end. | plural with s, more than one
- Add es | Put es at the end. | plural with es, plural with s
- One again | From many to one. | singular of easy words, plural with s
- Easy review | Easy words again. | plural with es, singular of easy words, more than one
S Plurals that change | intermediate | ies, ves | The end of the word can change.
- From y | The y is gone. | from y to ies, plural with s
- From f | The f is gone. | from f to ves, plural with es
- End of the word | Look at the end. | from y to ies, from f to ves
- Change review | Words that change. | all plurals, from f to ves, from y to ies
S Odd plurals | advanced | odd words, singular | Odd plurals have no rule.
- Odd words | Words with no rule. | odd plurals, all plurals
- Back to one | Find the singular. | back to one, singular of odd words
- Odd or not | Look for the rule. | odd plurals, plural with es, singular of odd words
- Word review | All words again. | all plurals, back to one, odd plurals

D Opposites
C size words = opposite kind=size
C place words = opposite kind=place
C feeling words = opposite kind=feel
C action words = opposite kind=act
C state words = opposite kind=state
C time words = opposite kind=time
C all opposites = opposite kind=any
C mixed opposites = opposite kind=any
S Words for things | beginner | size, feeling | We learn words for things.
- Size | Big and small things. | size words, state words
- Feeling | Hot, cold and more. | feeling words, size words
- How things are | Clean, fast and more. | state words, feeling words
- Thing review | All words again. | size words, mixed opposites, state words
S Words for places | intermediate | place, time | We learn words for places.
- Place | Up, down and more. | place words, size words
- Time | Day, night and more. | time words, place words
- Place and time | Both kinds of words. | time words, place words, mixed opposites
- Where and when | Where things are and when. | place words, all opposites
S Words for actions | advanced | actions, all words | We learn words for actions.
- Action | Give, take and more. | action words, feeling words
- Do and feel | Both kinds of words. | feeling words, action words
- All opposites | All kinds of words. | all opposites, mixed opposites
- Action review | All actions again. | action words, all opposites, time words

F Reasoning / Groups
D Categories
C animals and birds = kind kinds=animal_bird
C food and drink = kind kinds=fruit_drink
C things at home = kind kinds=furniture_clothing
C things to use = kind kinds=tool_vehicle
C toys and colors = kind kinds=toy_color
C flowers and fruit = kind kinds=flower_fruit
C kind of thing = kind
C odd one of four = odd size=4
C what does not fit = odd size=4
C odd one of three = odd size=3
C find the kind = pick
C pick from a list = pick
S Living things | beginner | animals, flowers | We name living things.
- Animals | Name animals and birds. | animals and birds, kind of thing
- Flowers | Name flowers and fruit. | flowers and fruit, animals and birds
- Food | Name fruit and drink. | food and drink, flowers and fruit
- Living review | All living things. | animals and birds, food and drink, odd one of three
S Things we use | intermediate | home, tools | We name things we use.
- At home | Name things at home. | things at home, kind of thing
- Tools | Name things we use. | things to use, things at home
- Toys | Name toys and colors. | toys and colors, things to use
- Thing review | All things again. | kind of thing, pick from a list, toys and colors
S Sorting things | advanced | odd one, groups | We sort things into groups.
- Odd one out | One does not fit. | odd one of four, what does not fit
- Three things | One of three is odd. | odd one of three, odd one of four
- Find it | Find one kind. | find the kind, pick from a list
- Sort review | Sort all things. | what does not fit, find the kind, kind of thing

F Reasoning / Logic
D Syllogisms
C all and one = trait
C what it is like = trait
C two steps = chain
C chain of kinds = chain
C who is on top = taller way=top
C who is last = taller way=low
C order of people = taller way=top
C one place or the other = either
C where it is = either
S All and one | beginner | all, one | What all are, one is too.
- One of them | All are so, one is so. | all and one, what it is like
- What is it like | Find what it is like. | what it is like, where it is
- One of two | It is here or there. | one place or the other, where it is
- First review | First rules again. | all and one, one place or the other, what it is like
S Chains | intermediate | two steps, kinds | We go from kind to kind.
- Two steps | Use two rules. | two steps, all and one
- Kinds in kinds | From kind to kind. | chain of kinds, two steps
- Chain and place | Rules and places. | chain of kinds, where it is
- Chain review | All chains again. | two steps, what it is like, one place or the other
S Order of people | advanced | top, last | We put people in order.
- On top | Find who is on top. | who is on top, order of people
- The last | Find who is last. | who is last, who is on top
- In order | Put them in order. | order of people, who is last
- Order review | Order and rules. | who is last, two steps, order of people
"""
