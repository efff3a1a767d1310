package listsource

import "github.com/writ-mesh/writ/pilot/model"

// OfFiles gives the entries of the lists that come from files of the mesh directory, for
// questions about a mesh that does not run. A file that pilot would not take is left
// out, as if it had never been good.
func OfFiles(lists []*model.AccessList, read func(name string) ([]byte, error)) map[string]model.Fetched {
	out := map[string]model.Fetched{}
	for _, list := range lists {
		if list.From == nil || list.From.File == "" {
			continue
		}
		body, err := read(list.From.File)
		if err != nil {
			continue
		}
		if entries, err := parse(list.Form, body); err == nil {
			out[list.Namespace+"/"+list.Name] = model.Fetched{Entries: entries}
		}
	}
	return out
}
