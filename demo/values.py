"""The word lists behind the demo's task: real names and cities, and syllables from which others are built.

Chosen so that SmolLM2's tokenizer cuts a word alike with and without a leading space (" Lyon" against "Lyon"
after a quotation mark; built words in at least 95 of 100 pairs): the task is then about finding and copying a
value, not about respelling it. Last names always follow a first name and are free of that constraint; a job is
a domain and a role, each one token. Everything is ASCII.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words("""
Abena Adam Aisha Akira Alexander Alexis Ali Alice Ama Andrew Anil Ann Anna Arjun Arthur Astrid Bianca Brandon Caleb
Carl Carla Celine Charles Chidi Christian Clive Damian Daniel Danielle Dario David Deepak Denise Dieter Dmitri
Donald Donna Dora Dylan Edward Elise Elizabeth Emily Enzo Evelyn Fatima Frank Freya George Gideon Gilles Gina Giulia
Gwen Hector Heidi Henry Ida Igor Imran Ines Ingrid Jack Jacob James Jana Janice Javier Jean John Jonas June Kara
Kenji Klaus Kofi Kyle Layla Leila Lena Leon Lori Louis Luc Luca Lucia Lydia Mabel Madison Margot Maria Marie Marilyn
Mark Mary Mathis Matthew Max Megan Micah Michael Min Ngozi Nils Odette Olaf Olga Opal Paolo Paul Peter Petra Pilar
Rene Richard Rita Robert Rose Ross Rufus Salma Samir Samuel Sarah Scott Sigrid Silas Silvia Simon Simone Sita Stella
Stephen Sunil Sven Svetlana Tariq Tatiana Tessa Theresa Thomas Tina Uma Victor Virginia Wanda Willie Xenia Yara Yuki
Yusuf Yves Zara Zoe Zuri
""")
"""First names in use."""

FIRST_STARTS = _words("""
Adam Bel Bern Bol Cal Cam Cas Cath Cor Cos Dam Dan Dav Del Den Dom Don Emer Fil Flor Gal Greg Hal Han Har Hel Hen
Hol Jan Jon Jud Jul Kim Len Leon Les Lev Lew Lin Lou Mag Mal Marc Marg Mart Mat Max Mel Mic Mil Mor Mur Nav Neil Nic
Nor Pal Phil Pol Ram Ren Rod Rom Ros Ross Rub Sal Sam San Sel Ser Sher Sil Sol Stan Tab Tam Tib Tim Tom Tor Val Van
Vel Ven Vir Vol Wal Whit Wil Win Zen Alex Aud Ben Carl Gen Lex
""")
"""Beginnings of built first names."""

FIRST_ENDS = _words("""
ander ara ard bert ias ida iel ika il ina ino ira isa ista ita ius na nel ona ora os ra ren ria ric rick ris ros va
van ven via vin vis wan wen win zar zen zo mond wald
""")
"""Endings of built first names."""

LAST_NAMES = _words("""
Abbott Abe Adams Ahmed Allen Amari Anderson Andre Andrews Armstrong Arnold Aziz Bailey Baker Barlow Barnes Bauer
Baumann Becker Bell Bennett Berg Berger Berry Black Blake Blanc Bonnet Bose Boyd Boyer Bradley Braun Brooks Brown
Bruno Burns Butler Campbell Carlson Carpenter Carroll Carter Castillo Castro Chandler Chavez Chen Clark Coleman
Collins Colombo Conti Cook Cooper Costa Cox Crawford Cruz Cunningham Dahl Daniels Das Davis Diallo Diaz Dixon Doyle
Drake Dubois Duncan Dunn Dupont Durand Eaton Edwards Elliott Emerson Evans Faure Ferguson Fernandez Ferrari Finch
Fischer Fisher Flores Ford Foster Fox Francois Freeman Friedrich Frost Fuchs Gallo Garcia Gardner Garza Gibbs Girard
Gonzalez Goodwin Gordon Graham Grant Gray Greco Green Gupta Hagen Hahn Hale Hall Hansen Harris Harrison Hart
Hartmann Hawkins Henderson Henry Hernandez Hicks Hill Hobbs Hoffman Hofmann Holmes Horvat Howard Hudson Hughes Hunt
Hunter Ingram Irwin Ito Ivanov Jackson Jenkins Jimenez Johnson Johnston Jones Joyce Jung Kaiser Karlsson Keller
Kelley Kelly Kennedy Kent Khan Kim King Kirby Klein Knight Koch Krause Krueger Kumar Lambert Lane Lang Lange Larsson
Laurent Lawrence Lee Legrand Lehmann Leroy Lewis Lindberg Lindgren Lombardi Long Lopez Lorenz Lowe Lund Maier
Mancini Mansour Marino Marsh Marshall Martin Martinez Mason Matthews Maxwell McDonald Mendez Meyer Michel Miller
Mills Mitchell Moller Moore Morales Moreau Moretti Morgan Mori Morris Muller Munoz Murphy Murray Myers Nagy Nash
Nasser Neumann Nguyen Nichols Nilsson Norton Novak Nowak Odell Olson Olsson Orlov Osborne Owens Palmer Parker Patel
Payne Pena Perez Perkins Perry Persson Peters Peterson Petrov Phillips Pierce Pope Popov Porter Powell Pratt Price
Quinn Ramos Ramsey Rao Ray Reddy Reed Reyes Rhodes Ricci Rice Richards Richardson Richter Riley Rivera Roberts
Robertson Robinson Rodriguez Rogers Romano Ross Rossi Rousseau Roux Ruiz Russo Ryan Salazar Saleh Sanchez Sanders
Sandoval Santos Sato Schmidt Scholz Schulz Schwarz Sharma Shaw Silva Simmons Simpson Singh Smith Snyder Soto Spencer
Steele Stephens Stewart Stone Sullivan Sutton Suzuki Szabo Tanaka Tate Taylor Thompson Thorne Torres Toth Traore
Tucker Turner Underwood Upton Vance Vasquez Vaughn Vincent Vogel Volkov Wagner Walker Ward Warren Washington Watson
Weaver Webb Weber Weiss Wells Werner Whitaker White Wilder Williams Willis Wilson Wolf Wood Woods Wright Yamamoto
Yates York Young Zimmermann
""")
"""Last names in use."""

LAST_STARTS = _words("""
Barn Bell Berg Bird Black Bol Brand Brit Brook Bur Burn Cal Cam Camp Card Carl Cart Cast Cold Cook Corn Cran Dal Day
Dun Eck Eng Fair Fal Far Fen Fin Flor Gal Gall Gar Gold Good Grad Gran Green Greg Hal Hall Ham Hard Harv Haw Hay
Hill Hol Hop Hor Hun Hur Jan Kel Ken Kenn King Kirk Klein Kol Kor Lam Land Lang Law Lind Lith Long Low Lund Mac Mal
Mark Mart Mat May Mid Mill Mont Moor Mor Mur Nash Nor Palm Park Pear Penn Per Pet Pick Pol Por Quin Rab Rad Ram Rand
Ray Ren Rich Rob Rock Ros Rut Sal Sand Shel Sher Sil Sol Stan Stock Sun Sund Swan Tal Tan Tem Tol Tor Tur Val Van
Vol Wal Ward Wat Wel West Whit Wil Wind Wood
""")
"""Beginnings of built last names."""

LAST_ENDS = _words("""
ley ton man mann quist strom berg borg feld field ford ham hart hurst land lin low mark mere more mont nell ner rich
ridge row stad stein stock ter vik ville wald ward way well wick win wood worth wright ova ini elli ano ardo ault
ier ovic ides akis ian aga ari
""")
"""Endings of built last names."""

CITIES = _words("""
Accra Algiers Amman Antwerp Avignon Bari Beirut Belgrade Bern Bordeaux Boston Braga Bremen Bruges Busan Cairns
Cambridge Caracas Casablanca Chicago Christchurch Dakar Darwin Doha Durban Galway Gdansk Genoa Ghent Haifa Hanoi
Hanover Harare Jackson Jacksonville Kobe Lille Limerick Lincoln London Madison Mainz Marseille Metz Minsk Muscat
Nanjing Nantes Newark Norwich Odessa Osaka Oxford Palermo Paris Pisa Porto Pune Rabat Recife Regina Reims Rennes
Riyadh Rome Rotterdam Sapporo Spokane Stuttgart Toulouse Trieste Turin Utrecht Valencia Verona Wichita Yokohama
Zagreb
""")
"""Cities on the map."""

CITY_STARTS = _words("""
Barn Bay Bel Bern Bird Black Brand Brit Bur Cal Card Cast Cold Corn East Edge Fair Gal Gold Green Hal Haw Hay High
Hol Iron King Land Law Leaf Lith Long Low Mal Mid Mill Mon Mont Moon North Old Park Penn Pol Port Rad Rain Red Ren
Rich Rock Rom Rose Ross Row Sal San Sand Sel Sher Sil Snow Sol South Stan Sun Tem Tow Tur Val Vol Wal Wash West Whit
Wild Wil Wind Wood
""")
"""Beginnings of built city names."""

CITY_ENDS = _words("""
ville burg ford haven port mont wick stad holm field mouth bridge bury minster stead ham wood water bourne cross
hill hurst ley mere ness pool well wich berg bach heim feld furt pur abad vik nes strand court val aven ona ora ista
anza
""")
"""Endings of built city names."""

DOMAINS = _words("""
air art audio ball bank bar base bee bell bird block boat bone book border box bread bridge building bus button
camera camp car card care chain chemical church circuit city class clay clock cloth cloud coal code coin color
community computer contract control cost court craft crop culture cycle data defense design disk dog door earth egg
election email energy engine event exam export factory family farm fashion fiber field film fire fish flag flight
floor flower food forest fruit fuel fund game gas glass gold grain graph grass hat health heat history horse
hospital house ice image import industry ink iron key lab lake land language law leaf lens letter library light lime
line liquid list loan lock log machine mail map math meat media memory menu message metal milk mine model money moon
motor mouse movie museum music nature network news night ocean oil orange ore organ oven package paper park pattern
payment pen pet phone photo pine pipe plane plant plastic plate policy pool port post power print product project
property public radio rail rain record research rice ring river road robot rock room root rose safety salt sand
satellite school science screen script sea security seed service share shell ship sign signal site sky sleep snow
software soil solar song sound space stage stamp star station stock stone store story street student study sugar
summer sun surface table tank target tax tech test theme thread tile tool tower town trade traffic train travel tree
tube vehicle video voice wage wall watch water wave wax weather web wheat wheel wind window wine winter wire wood
world yard
""")
"""First words of a job: what the work is about."""

ROLES = _words("""
engineer teacher clerk painter driver inspector buyer seller keeper dealer designer manager planner worker maker
guide trainer writer editor analyst agent broker technician supervisor trader expert consultant researcher artist
cleaner collector critic historian assistant director advisor operator developer instructor specialist scientist
coordinator builder reporter lecturer
""")
"""Second words of a job: what is done."""
