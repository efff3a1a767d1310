package meshdir

import (
	"cmp"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// accessListSpec is the specification of an AccessList.
type accessListSpec struct {
	Selector        *labelSelector   `json:"selector"`
	Action          string           `json:"action"`
	Match           string           `json:"match"`
	EntryType       string           `json:"entryType"`
	Entries         []string         `json:"entries"`
	Overrides       *accessOverrides `json:"overrides"`
	From            *accessFrom      `json:"from"`
	Mode            string           `json:"mode"`
	WhenUnavailable string           `json:"whenUnavailable"`
}

type accessOverrides struct {
	Allow []string `json:"allow"`
	Deny  []string `json:"deny"`
}

type accessFrom struct {
	URL            string    `json:"url"`
	File           string    `json:"file"`
	CACertificates string    `json:"caCertificates"`
	Refresh        *duration `json:"refresh"`
	Timeout        *duration `json:"timeout"`
	MaxAge         *duration `json:"maxAge"`
}

// Bounds of an AccessList.
const (
	// defaultListRefresh and defaultListTimeout are those of a URL; a file is looked
	// at every second.
	defaultListRefresh = time.Minute
	defaultListTimeout = 10 * time.Second
	minListRefresh     = time.Second
	maxListRefresh     = 24 * time.Hour
	maxListTimeout     = time.Minute
	fileListRefresh    = time.Second
)

// accessForms are the entry types, by Mixer's names.
func accessForms() map[string]model.AccessForm {
	return map[string]model.AccessForm{
		"STRINGS": model.AccessStrings, "CASE_INSENSITIVE_STRINGS": model.AccessStringsAnyCase,
		"IP_ADDRESSES": model.AccessAddresses, "REGEX": model.AccessRegex,
	}
}

// accessKeys are what may be matched.
func accessKeys() []string {
	return []string{
		condition.SourceIP, condition.RemoteIP, condition.Principal, condition.Namespace, condition.SNI, condition.Headers + "[name]",
		condition.TokenPrincipal, condition.Claims + "[name]", model.AccessHost, model.AccessPath,
	}
}

// accessKey says whether match is one of them, and if so its name without brackets.
func accessKey(match string) (name string, ok bool) {
	if match == model.AccessHost || match == model.AccessPath {
		return match, true
	}
	k, arg, ok := condition.Find(match)
	ok = ok && slices.ContainsFunc(accessKeys(), func(known string) bool { return known == k.Name || strings.HasPrefix(known, k.Name+"[") })
	return k.Name, ok && (k.Name != condition.Headers || headerNameForm.MatchString(arg))
}

// accessForm is how entries are compared: addresses for addresses, else texts
// unless the object says otherwise.
func accessForm(s *accessListSpec) model.AccessForm {
	if form, ok := accessForms()[s.EntryType]; ok {
		return form
	}
	if s.Match == condition.SourceIP || s.Match == condition.RemoteIP {
		return model.AccessAddresses
	}
	return model.AccessStrings
}

func checkAccessList(c *checker) {
	s := c.object.spec.(*accessListSpec)
	c.policyMode(s.Selector, s.Mode, s.WhenUnavailable)
	switch actions := []string{"ALLOW", "DENY"}; {
	case s.Action == "":
		c.errorf("spec.action", "is missing: write ALLOW for a list of who may, or DENY for one of who may not")
	case !slices.Contains(actions, s.Action):
		c.errorf("spec.action", "unknown action %q%s", shorten(s.Action), didYouMean(s.Action, actions))
	}
	name, ok := accessKey(s.Match)
	switch {
	case s.Match == "":
		c.errorf("spec.match", "is missing: write what is looked up, such as source.ip")
	case !ok:
		c.errorf("spec.match", "%q cannot be looked up in a list%s", shorten(s.Match), didYouMean(s.Match, accessKeys()))
	}
	c.entryType(s, name)
	if len(s.Entries) == 0 && s.From == nil {
		c.errorf("spec.entries", "the list is empty: give entries, from, or both")
	}
	if ok {
		form := accessForm(s)
		c.entries("spec.entries", form, s.Entries)
		if o := s.Overrides; o != nil {
			c.entries("spec.overrides.allow", form, o.Allow)
			c.entries("spec.overrides.deny", form, o.Deny)
			for i, entry := range o.Allow {
				if slices.Contains(o.Deny, entry) {
					c.errorf(index("spec.overrides.allow", i), "%q is among those of deny as well: remove one", shorten(entry))
				}
			}
		}
	}
	if s.WhenUnavailable != "" && s.From == nil {
		c.errorf("spec.whenUnavailable", "is about the entries from elsewhere, and there is no from: remove it")
	}
	c.accessFrom(s.From)
}

func (c *checker) entryType(s *accessListSpec, key string) {
	forms := accessForms()
	form, ok := forms[s.EntryType]
	addresses := key == condition.SourceIP || key == condition.RemoteIP
	var known []string
	for name := range forms {
		known = append(known, name)
	}
	switch {
	case s.EntryType == "":
	case !ok:
		c.errorf("spec.entryType", "unknown type %q%s", shorten(s.EntryType), didYouMean(s.EntryType, known))
	case addresses != (form == model.AccessAddresses):
		c.errorf("spec.entryType", "%s does not go with %s: IP_ADDRESSES is for source.ip and remote.ip, and for nothing else", s.EntryType, s.Match)
	case key == condition.TokenPrincipal && form != model.AccessStrings:
		c.errorf("spec.entryType", "%s goes with STRINGS only", s.Match)
	case key == condition.Namespace && form != model.AccessStrings, key == model.AccessHost && form == model.AccessStringsAnyCase:
		c.errorf("spec.entryType", "%s does not go with %s: write STRINGS", s.EntryType, s.Match)
	}
}

func (c *checker) entries(at string, form model.AccessForm, entries []string) {
	for i, entry := range entries {
		if fault := model.EntryFault(form, entry); fault != "" {
			c.errorf(index(at, i), "%q %s", shorten(entry), fault)
		}
	}
	if most := model.MaxEntries(form); len(entries) > most {
		c.errorf(at, "%d entries are too many: an AccessList of this type has at most %d", len(entries), most)
	}
}

func (c *checker) accessFrom(f *accessFrom) {
	if f == nil {
		return
	}
	const at = "spec.from"
	if (f.URL == "") == (f.File == "") {
		c.errorf(at, "give exactly one of url and file")
	}
	if f.URL != "" {
		if problem := model.URLProblem(f.URL); problem != "" {
			c.errorf(at+".url", "%q %s", shorten(f.URL), problem)
		}
	}
	if path.IsAbs(f.File) {
		c.errorf(at+".file", "%q is not of the mesh directory: write a name in it, such as lists/partners.txt", shorten(f.File))
	} else if f.File != "" && c.options.ReadFile != nil {
		if _, err := c.options.ReadFile(f.File); err != nil {
			c.errorf(at+".file", "the file %q cannot be read: %s", shorten(f.File), fileProblem(err))
		}
	}
	if u, err := url.Parse(f.URL); f.CACertificates != "" && (err != nil || u.Scheme != "https") {
		c.errorf(at+".caCertificates", "is for an https url")
	}
	c.certificateFiles(at, "", "", "", f.CACertificates)
	for _, d := range []struct {
		name     string
		value    *duration
		min, max time.Duration
	}{{"refresh", f.Refresh, minListRefresh, maxListRefresh}, {"timeout", f.Timeout, time.Millisecond, maxListTimeout}, {"maxAge", f.MaxAge, minListRefresh, 10 * 365 * 24 * time.Hour}} {
		if d.value != nil && (d.value.value() < d.min || d.value.value() > d.max) {
			c.errorf(at+"."+d.name, "%s is not between %s and %s", d.value.value(), d.min, d.max)
		}
	}
}

func accessListOf(o *object) *model.AccessList {
	s := o.spec.(*accessListSpec)
	name, _ := accessKey(s.Match) // checked before
	match := s.Match
	if name == condition.Headers {
		match = strings.ToLower(match)
	}
	out := &model.AccessList{
		Meta: o.meta, Selector: s.Selector.labels(), Deny: s.Action == "DENY", Match: match, Form: accessForm(s), Entries: s.Entries,
		FailOpen: s.WhenUnavailable == "Allow", Observe: s.Mode == "observe",
	}
	if s.Overrides != nil {
		out.AllowFirst, out.DenyFirst = s.Overrides.Allow, s.Overrides.Deny
	}
	if f := s.From; f != nil {
		refresh := defaultListRefresh
		if f.File != "" {
			refresh = fileListRefresh
		}
		or := func(d *duration, otherwise time.Duration) time.Duration {
			if d == nil {
				return otherwise
			}
			return cmp.Or(d.value(), otherwise)
		}
		out.From = &model.AccessSource{
			URL: f.URL, File: f.File, CAFile: f.CACertificates, Refresh: or(f.Refresh, refresh), Timeout: or(f.Timeout, defaultListTimeout), MaxAge: or(f.MaxAge, 0),
		}
	}
	return out
}
