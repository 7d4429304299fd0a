// Exports the annotations of every image of the open project as GeoJSON, for training with bcss_jax.
//
// QuPath 0.5 and 0.6: Automate > Script editor, open this file, Run. Save the open image first (File > Save): the script
// reads what is stored in the project. One file a slide, with the slide's name and the ending .geojson, is written into
// the folder `annotations` of the project. Images without annotations are named and get no file.
// Coordinates are pixels of the full resolution, as QuPath counts them; measurements are left out.

import qupath.lib.common.GeneralTools
import qupath.lib.io.PathIO
import qupath.lib.projects.Projects

def project = getProject()
if (project == null) {
    println "Open a project first."
    return
}
def folder = new File(Projects.getBaseDirectory(project), "annotations")
folder.mkdirs()

def written = [:] // file name -> image, so that no file is written twice
for (entry in project.getImageList()) {
    // The file's name rather than the image's, which can be changed in the project.
    def uris = entry.getURIs()
    def name = uris.isEmpty() ? entry.getImageName() : new File(uris.iterator().next().getPath()).getName()
    def stem = GeneralTools.getNameWithoutExtension(name)
    def annotations = entry.readHierarchy().getAnnotationObjects()
    if (annotations.isEmpty()) {
        println "${entry.getImageName()}: no annotations, nothing written"
        continue
    }
    if (written.containsKey(stem)) {
        println "${entry.getImageName()}: NOT WRITTEN, ${stem}.geojson already holds ${written[stem]}; rename the slide"
        continue
    }
    def without = annotations.count { it.getPathClass() == null }
    def file = new File(folder, stem + ".geojson")
    PathIO.exportObjectsAsGeoJSON(
        file,
        annotations,
        PathIO.GeoJsonExportOptions.FEATURE_COLLECTION,
        PathIO.GeoJsonExportOptions.EXCLUDE_MEASUREMENTS
    )
    written[stem] = entry.getImageName()
    println "${entry.getImageName()}: ${annotations.size()} annotations, ${without} of them without a class -> ${file}"
}
println "${written.size()} files in ${folder}"
